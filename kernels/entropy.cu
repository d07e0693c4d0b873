// Patch scores on CUDA: bilinear upsampling, softmax, score and patch sums of low-resolution logits in one pass.
//
// One block of THREADS threads does one tile of one patch. A thread owns a column of pixels and walks down its rows with
// the values of all classes in registers:
//   1. the block stages the tile's window of low-resolution logits in shared memory, widened to float32, times log2(e);
//   2. entering the space between two low-resolution rows, a thread interpolates both horizontally (top, dif);
//   3. per pixel and class: one FMA (the vertical half), a max and a min, a subtraction, ex2, an addition, an FMA.
// The min keeps the losers of the running maximum: the largest logit, whose exponential is exactly 1, is not among the
// C - 1 that remain. It saves one exponential and keeps 1 - p1 exact where p1 is nearly 1.
// Sums are float32 down a thread's rows (at most 32) and across a warp, by shuffles; float64 over the warps, and over the
// tiles of a patch in a second kernel. No atomics: the order depends on the shape alone, so results repeat bit for bit.
//
// Interpolating in float32 is off by about 2e-7 of the largest logit, and that, as an absolute error of the differences
// between classes, is the relative error of a small entropy. A block that stages a logit beyond FLOAT32_LIMIT therefore
// takes a careful path: float64, classes in a loop, few registers. It also serves more classes than fit in registers.
//
// Comes after common.cu. Instantiate with KERNEL(name, classes, dtype, score, mode).

#define WARPS (THREADS / 32)
#define TILE_ROWS_MAX 128  // THREADS / 32 groups of 32 rows
#define FLOAT32_LIMIT 48.0f  // as in reference.py
#define REGISTER_CLASSES 96  // more are done in a loop
#define KEEP_CLASSES 32  // up to here the interpolated rows stay in registers from one pixel to the next
// Blocks per multiprocessor that the compiler must allow: 65536 / (THREADS * this) registers per thread, which suffices
// for the 3 C values and the rest. Without it the compiler may spill a value for an occupancy that brings nothing.
#define BLOCKS(classes) ((classes) <= 12 ? 6 : (classes) <= 20 ? 5 : (classes) <= 26 ? 4 : (classes) <= 64 ? 3 : 2)
#define LOG2E 1.44269504f
#define LOG2E_REST 1.92596303e-8f  // log2(e) - LOG2E
#define LN2 0.693147181f

enum Score { ENTROPY, LEAST_CONFIDENCE, MARGIN, CONFIDENCE, RATIO };
enum Mode {
    IDENTITY,  // no upsampling: logits go straight from global memory to registers
    STAGED,    // upsampling from shared memory
    DIRECT     // the window of even a small tile exceeds shared memory (strong downsampling): careful, from global memory
};

// The lower and the higher of two; a NaN stays in one of them. Before sm_80 there is no instruction that keeps it.
static __device__ __forceinline__ void sort(float a, float b, float& low, float& high) {
#if __CUDA_ARCH__ >= 800
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(low) : "f"(a), "f"(b));
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(high) : "f"(a), "f"(b));
#else
    const bool swapped = b > a;
    low = swapped ? a : b, high = swapped ? b : a;
#endif
}
// The higher of two; NaN if one of them is.
[[maybe_unused]] static __device__ __forceinline__ float higher(float a, float b) {
#if __CUDA_ARCH__ >= 800
    float high;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(high) : "f"(a), "f"(b));
    return high;
#else
    return a > b || a != a ? a : b;
#endif
}
// 2^x to 2 ulp, 0 below -126.
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Linear interpolation along an axis, as torch's interpolate defines it, in integers: low is never off by one.
struct Tap {
    int low, high;     // the two low-resolution positions
    u32 rest, whole;   // weight of high = rest / whole
    __device__ __forceinline__ float weight() const { return __fdiv_rn((float)rest, (float)whole); }
    __device__ __forceinline__ double weight64() const { return (double)rest / (double)whole; }
};
static __device__ __forceinline__ Tap tap(int at, int n_in, int n_out, int align_corners) {
    int numerator = align_corners ? at * (n_in - 1) : (2 * at + 1) * n_in - n_out;
    if (numerator < 0) numerator = 0;
    Tap t;
    t.whole = align_corners ? (n_out > 1 ? n_out - 1 : 1) : 2 * n_out;
    t.low = (u32)numerator / t.whole;
    t.rest = (u32)numerator - t.low * t.whole;
    t.high = t.low + 1 < n_in ? t.low + 1 : t.low;
    return t;
}

// Score of a pixel from S = sum of e over all classes but the largest, T = sum of d e (in units of `unit` nats) and
// second = the largest e; e = exp(d), d = logit - largest logit. For the entropy, equation 1: log(1 + S) - T / (1 + S).
template <int SCORE>
static __device__ __forceinline__ float finish(float S, float T, float second, float unit) {
    float above = 2.0f + S, whole = 1.0f + S;
    if (SCORE == CONFIDENCE) return reciprocal(whole);
    if (SCORE == LEAST_CONFIDENCE) return S * reciprocal(whole);
    if (SCORE == MARGIN) return (S + second) * reciprocal(whole);
    if (SCORE == RATIO) return second + (S - S);  // a NaN is in S
    // log(1 + S) = 2 atanh(S / (2 + S)): a series where S is small, which keeps the relative precision of a tiny S.
    float both = reciprocal(above * whole);
    float z = S * (both * whole), q = z * z;
    float series = z * fmaf(q, fmaf(q, fmaf(q, fmaf(q, 0.222222222f, 0.285714286f), 0.4f), 0.666666667f), 2.0f);
    float log1p = S < 0.4f ? series : log2_fast(whole) * LN2;
    return fmaf(-T * unit, both * above, log1p);
}

// Score of a pixel whose C logits are in registers; in units of log 2 if LOG2, else in nats.
template <int C, int SCORE, bool LOG2>
static __device__ __forceinline__ float score_registers(float (&v)[C]) {
    float m = v[0];
#pragma unroll
    for (int c = 1; c < C; ++c) {
        float winner;
        sort(m, v[c], v[c - 1], winner);
        m = winner;
    }
    if constexpr (SCORE == RATIO) {  // one exponential
        float second = v[0];
#pragma unroll
        for (int c = 1; c < C - 1; ++c) second = higher(second, v[c]);
        float d = second - m;
        return exp2_fast(LOG2 ? d : d * LOG2E) + (m - m);
    }
    float S = m - m, T = 0.0f, second = 0.0f;  // m - m: NaN if m is infinite, as the reference has it
#pragma unroll
    for (int c = 0; c < C - 1; ++c) {
        float d = v[c] - m;
        float e = exp2_fast(LOG2 ? d : d * LOG2E);
        S += e;
        if (SCORE == ENTROPY) T = fmaf(d, e, T);
        if (SCORE == MARGIN) second = fmaxf(second, e);
    }
    return finish<SCORE>(S, T, second, LOG2 ? LN2 : 1.0f);
}

// Score of a pixel whose logit of class c is load(c), float64, in nats. Two passes and no array: few registers.
template <int C, int SCORE, class Load>
static __device__ __forceinline__ float score_careful(const Load& load) {
    double m = load(0);
    int best = 0;
#pragma unroll 1
    for (int c = 1; c < C; ++c) {
        double x = load(c);
        if (!(x <= m)) {
            m = x;
            best = c;
        }
    }
    float S = (float)(m - m), T = 0.0f, second = 0.0f;
#pragma unroll 1
    for (int c = 0; c < C; ++c) {
        if (c == best) continue;
        float d = (float)(load(c) - m);
        float bounded = d < -150.0f ? -150.0f : d;  // keeps NaN
        float y = bounded * LOG2E;
        float rest = fmaf(bounded, LOG2E, -y) + bounded * LOG2E_REST;
        float e = exp2_fast(y);
        e = fmaf(e, rest * LN2, e);
        S += e;
        if (SCORE == ENTROPY) T = fmaf(d, e, T);
        if (SCORE == MARGIN || SCORE == RATIO) second = fmaxf(second, e);
    }
    return finish<SCORE>(S, T, second, 1.0f);
}

// Floats between one position and the next in the staged window: a multiple of 4, for 16-byte loads; and an odd one, so
// that 8 neighbouring positions fall into different banks.
template <int C>
struct Pitch {
    static const int value = ((C + 3) / 4 | 1) * 4;
};

// Copy the window of rows x columns from (first_y, first_x) on into shared memory [row][column][class], times scale;
// columns beyond the image repeat its last one. reciprocal = ceil(2^32 / columns).
// A thread takes a position and all its classes, and writes 16 bytes at a time. Contiguous tensors are read coalesced; in
// channels_last the lines that a warp touches are used up by its next loads, out of the L1 cache. Wider loads would need
// each position aligned (it is not: 19 classes are 38 bytes), and their values would go to shared memory one by one, in
// conflict with each other. Returns the largest magnitude that this thread saw.
template <class D, int C>
static __device__ __forceinline__ float stage(const Source<D>& from, int first_y, int rows, int first_x, int columns, u32 reciprocal, int last_x, float scale, float4* to) {
    const int P = Pitch<C>::value;
    float largest = 0.0f;
#pragma unroll 1
    for (int position = threadIdx.x; position < rows * columns; position += THREADS) {
        int row = __umulhi(position, reciprocal), x = min(first_x + position - row * columns, last_x);
        const typename D::word* at = from.data + (first_y + row) * from.stride_y + x * from.stride_x;
        float value[(C + 3) / 4 * 4] = {};
        if (from.stride_c == 1) {  // immediate offsets
#pragma unroll
            for (int c = 0; c < C; ++c) value[c] = D::widen(at[c]);
        } else {
#pragma unroll
            for (int c = 0; c < C; ++c) value[c] = D::widen(at[c * from.stride_c]);
        }
#pragma unroll
        for (int c = 0; c < C; c += 4) {
#pragma unroll
            for (int k = c; k < c + 4; ++k) {
                largest = fmaxf(largest, fabsf(value[k]));
                value[k] *= scale;
            }
            to[(position * P + c) / 4] = make_float4(value[c], value[c + 1], value[c + 2], value[c + 3]);
        }
    }
    return largest;
}

// Interpolate all classes of a staged row horizontally, between the positions left and right, and subtract minus.
template <int C, bool SUBTRACT>
static __device__ __forceinline__ void interpolate(const float4* left, const float4* right, float weight, const float (&minus)[C], float (&to)[C]) {
    const float rest = 1.0f - weight;  // that both add up to 1 only nearly scales all classes alike
#pragma unroll
    for (int c = 0; c < C; c += 4) {
        float4 a = left[c / 4], b = right[c / 4];
        const float from[4] = {a.x, a.y, a.z, a.w}, towards[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int k = 0; k < 4 && c + k < C; ++k) {
            float far = SUBTRACT ? fmaf(weight, towards[k], -minus[c + k]) : weight * towards[k];
            to[c + k] = fmaf(rest, from[k], far);
        }
    }
}

// One tile: grid = (patches, tiles down a patch, tiles across). Patches are patch_h x patch_w pixels; cells_y x cells_x
// of them are done, of which those outside rows x cols (the remainder of the image, if a map is wanted) enter no sum.
// partials[patch][tile] float64, map [B][H][W] or null; window_h and window_w bound the low-resolution window of a tile.
template <int C, class D, int SCORE, int MODE>
static __device__ __forceinline__ void tile_scores(
    const typename D::word* logits, double* partials, float* map, i64 stride_b, i64 stride_c, i64 stride_y, i64 stride_x,
    int h, int w, int H, int W, int align_corners, int patch_h, int patch_w, int rows, int cols, int cells_y, int cells_x,
    int log_tile_w, int thread_rows, int window_h, int window_w, u32 reciprocal) {
    extern __shared__ float4 window4[];
    __shared__ float4 row_taps[TILE_ROWS_MAX];  // where its two low-resolution rows begin in the window; weight of the second
    __shared__ double warp_sums[WARPS];
    const float* window = (const float*)window4;
    const int P = Pitch<C>::value;
    const bool in_registers = C <= REGISTER_CLASSES;

    int cell_x = blockIdx.x % cells_x, cell_y = blockIdx.x / cells_x % cells_y, b = blockIdx.x / cells_x / cells_y;
    int tile_w = 1 << log_tile_w, tile_h = (THREADS >> log_tile_w) * thread_rows;
    int y_begin = cell_y * patch_h + blockIdx.y * tile_h, x_begin = cell_x * patch_w + blockIdx.z * tile_w;
    int y_end = min(min(y_begin + tile_h, (cell_y + 1) * patch_h), H);
    int x_end = min(min(x_begin + tile_w, (cell_x + 1) * patch_w), W);
    if (y_begin >= y_end || x_begin >= x_end) return;  // the whole block; only beyond the image's end

    int x = x_begin + (threadIdx.x & (tile_w - 1)), y_from = y_begin + (threadIdx.x >> log_tile_w) * thread_rows;
    int y_to = min(y_from + thread_rows, y_end);
    const bool active = x < x_end;
    x = min(x, x_end - 1);  // threads beyond the tile repeat its last column, and count for nothing in the end
    Source<D> source = {logits + b * stride_b, stride_c, stride_y, stride_x};
    float* out = map && active ? map + ((i64)b * H + y_from) * W + x : 0;
    float total = 0.0f;

    if (MODE == IDENTITY) {
#pragma unroll 1
        for (int y = y_from; y < y_to; ++y) {
            float score;
            if constexpr (in_registers) {
                float v[C];
#pragma unroll
                for (int c = 0; c < C; ++c) v[c] = source.at(c, y, x);
                score = score_registers<C, SCORE, false>(v);
            } else {
                score = score_careful<C, SCORE>([&](int c) { return (double)source.at(c, y, x); });
            }
            total += score;
            if (out) *out = score, out += W;
        }
    } else {
        Tap tx = tap(x, w, W, align_corners);
        int first_y = 0, first_x = 0;
        bool careful = MODE == DIRECT;
        if (MODE == STAGED) {
            first_y = tap(y_begin, h, H, align_corners).low, first_x = tap(x_begin, w, W, align_corners).low;
#pragma unroll 1
            for (int y = threadIdx.x; y < y_end - y_begin; y += THREADS) {
                Tap ty = tap(y_begin + y, h, H, align_corners);
                int upper = (ty.low - first_y) * window_w * (P / 4), below = (ty.high - first_y) * window_w * (P / 4);
                row_taps[y] = make_float4(__int_as_float(upper), __int_as_float(below), ty.weight(), 0.0f);
            }
            // Times log2(e), unless that turns out to need the careful path: then once more without the factor's rounding.
            float scale = in_registers ? LOG2E : 1.0f;
#pragma unroll 1
            while (true) {
                float largest = stage<D, C>(source, first_y, min(window_h, h - first_y), first_x, window_w, reciprocal, w - 1, scale, window4);
                careful = __syncthreads_or(scale == 1.0f || largest > FLOAT32_LIMIT);
                if (!careful || scale == 1.0f) break;
                scale = 1.0f;
            }
        }
        if (careful) {
            double weight_x = tx.weight64();
#pragma unroll 1
            for (int y = y_from; y < y_to; ++y) {
                Tap ty = tap(y, h, H, align_corners);
                double weight_y = ty.weight64();
                float score = score_careful<C, SCORE>([&](int c) {
                    double a, b, p, q;
                    if (MODE == STAGED) {
                        const float* upper = window + ((ty.low - first_y) * window_w - first_x) * P + c;
                        const float* below = window + ((ty.high - first_y) * window_w - first_x) * P + c;
                        a = upper[tx.low * P], b = upper[tx.high * P], p = below[tx.low * P], q = below[tx.high * P];
                    } else {
                        a = source.at(c, ty.low, tx.low), b = source.at(c, ty.low, tx.high);
                        p = source.at(c, ty.high, tx.low), q = source.at(c, ty.high, tx.high);
                    }
                    a += weight_x * (b - a), p += weight_x * (q - p);
                    return a + weight_y * (p - a);
                });
                total += score;
                if (out) *out = score, out += W;
            }
        } else if constexpr (in_registers && MODE == STAGED) {
            float weight_x = tx.weight();
            const float4 *left = window4 + (tx.low - first_x) * (P / 4), *right = window4 + (tx.high - first_x) * (P / 4);
            int held = -1;
            float top[C], dif[C];
            const float4* row = row_taps + (y_from - y_begin);
            // Counting down, with moving pointers: what can be recomputed from the thread's index, the compiler would
            // recompute for every pixel.
#pragma unroll 1
            for (int left_over = y_to - y_from; left_over > 0; --left_over, ++row) {
                float4 taps = *row;
                int upper = __float_as_int(taps.x), below = __float_as_int(taps.y);
                if (C > KEEP_CLASSES || upper != held) {  // the same for all threads of a warp
                    interpolate<C, false>(left + upper, right + upper, weight_x, top, top);
                    interpolate<C, true>(left + below, right + below, weight_x, top, dif);
                    held = upper;
                }
                float v[C];
#pragma unroll
                for (int c = 0; c < C; ++c) v[c] = fmaf(taps.z, dif[c], top[c]);
                float score = score_registers<C, SCORE, true>(v);
                total += score;
                if (out) *out = score, out += W;
            }
        }
    }

    if (cell_y >= rows || cell_x >= cols) return;  // the whole block
    if (!active) total = 0.0f;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (int i = 0; i < WARPS; ++i) sum += warp_sums[i];
        i64 patch = (i64)(b * rows + cell_y) * cols + cell_x;
        partials[(patch * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z] = sum;
    }
}

// sums[patch] = sum of partials[patch][tile]; a warp per patch.
extern "C" __global__ void __launch_bounds__(THREADS) sum_partials(const double* partials, float* sums, int patches, int tiles) {
    int patch = blockIdx.x * WARPS + threadIdx.x / 32;
    if (patch >= patches) return;  // the whole warp
    double total = 0.0;
#pragma unroll 4
    for (int tile = threadIdx.x % 32; tile < tiles; tile += 32) total += partials[(i64)patch * tiles + tile];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (threadIdx.x % 32 == 0) sums[patch] = (float)total;
}

#define KERNEL(name, classes, dtype, score, mode)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS(classes)) name(                                       \
        const dtype::word* logits, double* partials, float* map, i64 stride_b, i64 stride_c, i64 stride_y,             \
        i64 stride_x, int h, int w, int H, int W, int align_corners, int patch_h, int patch_w, int rows, int cols,     \
        int cells_y, int cells_x, int log_tile_w, int thread_rows, int window_h, int window_w, u32 reciprocal) {       \
        tile_scores<classes, dtype, score, mode>(logits, partials, map, stride_b, stride_c, stride_y, stride_x, h, w,  \
                                                 H, W, align_corners, patch_h, patch_w, rows, cols, cells_y, cells_x,  \
                                                 log_tile_w, thread_rows, window_h, window_w, reciprocal);             \
    }
