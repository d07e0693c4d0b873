// What the kernels share: types, the dtypes that logits come in, where logits are. Stands before the text of each.
// Needs no header, so that NVRTC needs no include path.

#define THREADS 128  // per block

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

struct Float32 {
    typedef float word;
    static __device__ __forceinline__ float widen(word x) { return x; }
};
struct BFloat16 {
    typedef u16 word;
    static __device__ __forceinline__ float widen(word x) { return __uint_as_float((u32)x << 16); }
};
struct Float16 {
    typedef u16 word;
    static __device__ __forceinline__ float widen(word x) {
        float y;
        asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
        return y;
    }
};

// Where the logits of one image are and how they are laid out; strides in elements.
template <class D>
struct Source {
    const typename D::word* data;
    i64 stride_c, stride_y, stride_x;
    __device__ __forceinline__ float at(int c, int y, int x) const {
        return D::widen(data[c * stride_c + y * stride_y + x * stride_x]);
    }
};
