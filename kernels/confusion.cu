// Confusion counts on CUDA: bilinear upsampling of low-resolution logits, arg-max over the classes and the histogram of
// (truth, prediction) in one pass. No tensor of full resolution is ever written.
//
// One block of THREADS threads does one tile of one image. A thread owns a column of pixels and walks down its rows, up to
// ROWS at a time, all between the same two low-resolution rows:
//   1. the block stages the tile's window of logits in shared memory, widened to float32;
//   2. per class a thread reads the four corners once and, per row, interpolates (a product, three FMAs) and compares.
//      Nothing is held per class, so that one instance serves every number of classes in the same few registers;
//   3. a run of pixels of equal truth and prediction is counted in registers, and added where it ends: in shared memory
//      (up to SHARED_CLASSES classes), by atomics on integers. In the end the block adds its non-zero counts to the result.
// Integers have the same sum in any order, so the result repeats bit for bit.
//
// The arithmetic is that of torch's CPU bilinear interpolation of channels_last tensors: see upsample32 in reference.py.
// It is spelled out in PTX, so that no compiler option rounds otherwise. The largest logit wins, of equals the first class,
// and a NaN over all: as torch.argmax. Subnormal logits may count as zeros.
//
// Comes after common.cu. Instantiate with KERNEL(name, dtype, staged).

#define ROWS 4
#define SHARED_CLASSES 64  // as in confusion_cuda.py; more are counted in global memory
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

typedef unsigned char u8;
typedef unsigned long long u64;

static __device__ __forceinline__ float product(float a, float b) {
    float y;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
static __device__ __forceinline__ float fused(float a, float b, float c) {
    float y;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
    return y;
}

// Linear interpolation along an axis, in float32 as torch computes it; taps32 in reference.py is the same.
struct Tap {
    int low, high;       // the two low-resolution positions
    float rest, weight;  // their weights
};
static __device__ __forceinline__ Tap tap(int at, int n_in, int n_out, int align_corners, float step) {
    Tap t;
    if (n_in == n_out) {
        t.low = t.high = at, t.rest = 1.0f, t.weight = 0.0f;
        return t;
    }
    float position = align_corners ? product(step, (float)at) : fused(step, (float)at + 0.5f, -0.5f);
    position = fmaxf(position, 0.0f);
    t.low = min((int)position, n_in - 1);
    t.high = min(t.low + 1, n_in - 1);
    t.weight = fminf(fmaxf(position - (float)t.low, 0.0f), 1.0f);
    t.rest = 1.0f - t.weight;
    return t;
}

// Copy the window of rows x columns from (first_y, first_x) on into shared memory [row][column][pitch]; columns beyond the
// image repeat its last one. Neighbouring threads read what is neighbouring in memory. Dividing by n is multiplying by
// ceil(2^32 / n), exact for what fits into shared memory.
template <class D>
static __device__ __forceinline__ void stage(const Source<D>& from, int C, int first_y, int rows, int first_x, int columns, int last_x, int pitch, u32 by_classes, u32 by_columns, float* to) {
    const bool classes_first = from.stride_c == 1;
    const int n = rows * columns * C;
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += THREADS) {
        int c, x, y;
        if (classes_first) {
            int position = __umulhi(i, by_classes);
            c = i - position * C;
            y = __umulhi(position, by_columns), x = position - y * columns;
        } else {
            int line = __umulhi(i, by_columns);
            x = i - line * columns;
            y = __umulhi(line, by_classes), c = line - y * C;
        }
        to[(y * columns + x) * pitch + c] = from.at(c, first_y + y, min(first_x + x, last_x));
    }
}

// The largest class so far of ROWS pixels of a column.
struct Best {
    float value[ROWS];
    int index[ROWS];
};
// Class c, whose four corners are a b over p q, enters; weights [row][corner].
static __device__ __forceinline__ void enter(Best& best, const float (&weights)[ROWS][4], int c, float a, float b, float p, float q) {
#pragma unroll
    for (int k = 0; k < ROWS; ++k) {
        float v = fused(weights[k][3], q, fused(weights[k][2], p, fused(weights[k][0], a, product(weights[k][1], b))));
        if (!(v <= best.value[k]) && best.value[k] == best.value[k]) best.value[k] = v, best.index[k] = c;
    }
}

// One tile: grid = (images, tiles down, tiles across). truth is of height x width pixels, those that are counted, from the
// corner of the H x W image on; counts [C][C] are added to. window_h and window_w bound a tile's low-resolution window.
template <class D, bool STAGED>
static __device__ __forceinline__ void tile_counts(
    const typename D::word* logits, const u8* truth, u64* counts, i64 stride_b, i64 stride_c, i64 stride_y, i64 stride_x,
    i64 truth_b, i64 truth_y, i64 truth_x, int C, int h, int w, int H, int W, int align_corners, float step_y, float step_x,
    int height, int width, int log_tile_w, int thread_rows, int window_h, int window_w, int pitch, u32 by_classes,
    u32 by_columns) {
    extern __shared__ float4 shared4[];
    float* window = (float*)shared4;
    u32* histogram = (u32*)(window + window_h * window_w * pitch);
    const bool in_shared = C <= SHARED_CLASSES;

    int tile_w = 1 << log_tile_w, tile_h = (THREADS >> log_tile_w) * thread_rows;
    int y_begin = blockIdx.y * tile_h, x_begin = blockIdx.z * tile_w;
    int y_end = min(y_begin + tile_h, height), x_end = min(x_begin + tile_w, width);
    int x = x_begin + (threadIdx.x & (tile_w - 1)), y_from = y_begin + (threadIdx.x >> log_tile_w) * thread_rows;
    int y_to = min(y_from + thread_rows, y_end);
    const bool active = x < x_end;
    x = min(x, x_end - 1);  // threads beyond the tile repeat its last column, and count nothing
    Source<D> source = {logits + blockIdx.x * stride_b, stride_c, stride_y, stride_x};
    const u8* column = truth + blockIdx.x * truth_b + x * truth_x;

    int first_y = 0, first_x = 0;
    if (in_shared) {
        for (int i = threadIdx.x; i < C * C; i += THREADS) histogram[i] = 0;
    }
    if (STAGED) {
        first_y = tap(y_begin, h, H, align_corners, step_y).low, first_x = tap(x_begin, w, W, align_corners, step_x).low;
        stage<D>(source, C, first_y, min(window_h, h - first_y), first_x, window_w, w - 1, pitch, by_classes, by_columns, window);
    }
    __syncthreads();

    Tap tx = tap(x, w, W, align_corners, step_x);
    u32 held = 0, run = 0;
#pragma unroll 1
    for (int y = y_from; y < y_to;) {
        float weights[ROWS][4];
        int low = 0, high = 0, rows = 0;
        bool together = true;
#pragma unroll
        for (int k = 0; k < ROWS; ++k) {
            Tap ty = tap(min(y + k, y_to - 1), h, H, align_corners, step_y);
            if (k == 0) low = ty.low, high = ty.high;
            together = together && y + k < y_to && ty.low == low;
            rows += together;
            weights[k][0] = product(ty.rest, tx.rest), weights[k][1] = product(ty.rest, tx.weight);
            weights[k][2] = product(ty.weight, tx.rest), weights[k][3] = product(ty.weight, tx.weight);
        }
        Best best;
#pragma unroll
        for (int k = 0; k < ROWS; ++k) best.value[k] = NEGATIVE_INFINITY, best.index[k] = 0;
        if (STAGED) {
            const float* upper = window + (low - first_y) * window_w * pitch;
            const float* below = window + (high - first_y) * window_w * pitch;
            const float *a = upper + (tx.low - first_x) * pitch, *b = upper + (tx.high - first_x) * pitch;
            const float *p = below + (tx.low - first_x) * pitch, *q = below + (tx.high - first_x) * pitch;
            int c = 0;
#pragma unroll 1
            for (; c + 4 <= C; c += 4) {
                float4 A = *(const float4*)(a + c), B = *(const float4*)(b + c);
                float4 P = *(const float4*)(p + c), Q = *(const float4*)(q + c);
                enter(best, weights, c, A.x, B.x, P.x, Q.x);
                enter(best, weights, c + 1, A.y, B.y, P.y, Q.y);
                enter(best, weights, c + 2, A.z, B.z, P.z, Q.z);
                enter(best, weights, c + 3, A.w, B.w, P.w, Q.w);
            }
#pragma unroll 1
            for (; c < C; ++c) enter(best, weights, c, a[c], b[c], p[c], q[c]);
        } else {
#pragma unroll 1
            for (int c = 0; c < C; ++c) {
                enter(best, weights, c, source.at(c, low, tx.low), source.at(c, low, tx.high),
                      source.at(c, high, tx.low), source.at(c, high, tx.high));
            }
        }
#pragma unroll
        for (int k = 0; k < ROWS; ++k) {
            if (k >= rows || !active) continue;
            int is = column[(y + k) * truth_y];
            if (is >= C) continue;  // void
            u32 bin = is * C + best.index[k];
            if (bin != held) {
                if (run) {
                    if (in_shared) atomicAdd(histogram + held, run);
                    else atomicAdd(counts + held, (u64)run);
                }
                held = bin, run = 0;
            }
            ++run;
        }
        y += rows;
    }
    if (run) {
        if (in_shared) atomicAdd(histogram + held, run);
        else atomicAdd(counts + held, (u64)run);
    }
    if (!in_shared) return;  // the whole grid
    __syncthreads();
    for (int i = threadIdx.x; i < C * C; i += THREADS) {
        if (histogram[i]) atomicAdd(counts + i, (u64)histogram[i]);
    }
}

#define KERNEL(name, dtype, staged)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                        \
        const dtype::word* logits, const u8* truth, u64* counts, i64 stride_b, i64 stride_c, i64 stride_y,             \
        i64 stride_x, i64 truth_b, i64 truth_y, i64 truth_x, int C, int h, int w, int H, int W, int align_corners,     \
        float step_y, float step_x, int height, int width, int log_tile_w, int thread_rows, int window_h,              \
        int window_w, int pitch, u32 by_classes, u32 by_columns) {                                                     \
        tile_counts<dtype, staged>(logits, truth, counts, stride_b, stride_c, stride_y, stride_x, truth_b, truth_y,    \
                                   truth_x, C, h, w, H, W, align_corners, step_y, step_x, height, width, log_tile_w,   \
                                   thread_rows, window_h, window_w, pitch, by_classes, by_columns);                    \
    }
