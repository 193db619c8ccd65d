/* A CUDA runtime on host memory that counts its calls: kernels compute nothing.
 *
 * onnxruntime-gpu takes it for an H100: it places nodes, plans memory, and runs. `fake_counts` reports the calls since
 * `fake_reset` as lines "CALL NUMBER". Functions without a body here are written by `stubs.py`, which calls `fake_count` in
 * them. Types, structures and numbers are those of CUDA 13; its headers are not needed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int cudaError_t;
typedef void *cudaStream_t, *cudaEvent_t, *cudaMemPool_t, *cudaKernel_t;
typedef struct { unsigned x, y, z; } dim3;
enum { cudaSuccess, cudaErrorMemoryAllocation = 2, cudaErrorSymbolNotFound = 500, VERSION = 13000 };

#define CALLS 256
static const char *names[CALLS];
static long numbers[CALLS];

void fake_count(const char *name)
{
    for (int i = 0; i < CALLS; i++) {
        if (!names[i]) names[i] = name;
        if (!strcmp(names[i], name)) { numbers[i]++; return; }
    }
    abort();
}

void fake_reset(void) { memset(numbers, 0, sizeof numbers); }

void fake_counts(char *out, size_t size)
{
    *out = 0;
    for (int i = 0; i < CALLS && names[i]; i++) {
        size_t used = strlen(out);
        if (numbers[i]) snprintf(out + used, size - used, "%s %ld\n", names[i], numbers[i]);
    }
}

#define OK return cudaSuccess
#define COUNTED fake_count(__func__); OK

static cudaError_t allocate(void **p, size_t n)
{
    *p = 0;
    return n && posix_memalign(p, 4096, n) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t n) { fake_count(__func__); return allocate(p, n); }
cudaError_t cudaMallocHost(void **p, size_t n) { fake_count(__func__); return allocate(p, n); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { fake_count(__func__); return allocate(p, n); }
cudaError_t cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t m, cudaStream_t s)
{ fake_count(__func__); return allocate(p, n); }
cudaError_t cudaFree(void *p) { free(p); COUNTED; }
cudaError_t cudaFreeHost(void *p) { free(p); COUNTED; }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { free(p); COUNTED; }

static cudaError_t copy(void *to, const void *from, size_t n, int kind)
{
    static const char *const kinds[] = {
        "copy_host_to_host", "copy_host_to_device", "copy_device_to_host", "copy_device_to_device", "copy_default"};
    fake_count(kinds[kind]);
    memmove(to, from, n);
    OK;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, int k) { return copy(to, from, n, k); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, int k, cudaStream_t s)
{ return copy(to, from, n, k); }
cudaError_t cudaMemcpy2DAsync(
    void *to, size_t to_pitch, const void *from, size_t pitch, size_t w, size_t h, int k, cudaStream_t s)
{
    for (size_t i = 1; i < h; i++) memmove((char *)to + i * to_pitch, (const char *)from + i * pitch, w);
    return h ? copy(to, from, w, k) : cudaSuccess;
}
cudaError_t cudaMemset(void *p, int v, size_t n) { memset(p, v, n); COUNTED; }
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { memset(p, v, n); fake_count("memset"); OK; }

/* the device */
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; OK; }
cudaError_t cudaGetDevice(int *n) { *n = 0; OK; }
cudaError_t cudaSetDevice(int n) { OK; }
cudaError_t cudaDriverGetVersion(int *n) { *n = VERSION; OK; }
cudaError_t cudaRuntimeGetVersion(int *n) { *n = VERSION; OK; }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) { *free = 70ull << 30; *total = 80ull << 30; OK; }
cudaError_t cudaDeviceGetAttribute(int *v, int attribute, int d)
{
    static const int values[][2] = {{75, 9}, {76, 0}, {16, 132}, {97, 232448}, {81, 233472}, {1, 1024}, {10, 32}};
    *v = 1;
    for (int i = 0; i < 7; i++) if (values[i][0] == attribute) *v = values[i][1];
    OK;
}
cudaError_t cudaGetDeviceProperties(char *p, int d)
{
    static const struct { int offset; int value; } values[] = {
        {304, 65536}, {308, 32}, /* registers, threads of a warp */
        {320, 1024}, {324, 1024}, {328, 1024}, {332, 64}, /* threads of a block */
        {336, 2147483647}, {340, 65535}, {344, 65535}, /* blocks of a grid */
        {360, 9}, {364, 0}, {384, 132}, /* compute capability, multiprocessors */
        {588, 1}, {596, 50 << 20}, {604, 2048}}; /* one address space, L2 cache, threads of a multiprocessor */
    memset(p, 0, 1008);
    strcpy(p, "Fake H100");
    for (int i = 0; i < sizeof values / sizeof *values; i++) *(int *)(p + values[i].offset) = values[i].value;
    *(size_t *)(p + 288) = 80ull << 30; /* memory; of it shared: per block, per multiprocessor, per block on request */
    *(size_t *)(p + 296) = 49152;
    *(size_t *)(p + 624) = 233472;
    *(size_t *)(p + 672) = 232448;
    *(size_t *)(p + 352) = 65536;
    OK;
}
cudaError_t cudaPointerGetAttributes(int *a, const void *p)
{
    memset(a, 0, 88);
    *a = 2; /* memory of the device */
    *(const void **)(a + 2) = p;
    OK;
}
cudaError_t cudaGetDriverEntryPointByVersion(
    const char *s, void **p, unsigned v, unsigned long long f, int *r)
{ *p = 0; return cudaErrorSymbolNotFound; }

/* streams and events */
static void *handle(void) { return malloc(64); }
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = handle(); OK; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = handle(); OK; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = handle(); OK; }
cudaError_t cudaEventElapsedTime(float *m, cudaEvent_t a, cudaEvent_t b) { *m = 1; OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, int *c)
{ *c = 1; OK; } /* what may not be recorded is refused or shows in the counts */
cudaError_t cudaLaunchHostFunc(cudaStream_t s, void (*f)(void *), void *data) { f(data); COUNTED; }

/* kernels */
static __thread struct { dim3 grid, block; size_t shared; void *stream; } call;
void **__cudaRegisterFatBinary(void *f) { static void *x[4]; return x; }
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, void *stream)
{ call.grid = g; call.block = b; call.shared = s; call.stream = stream; return 0; }
cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *s, void *stream)
{ *g = call.grid; *b = call.block; *s = call.shared; *(void **)stream = call.stream; OK; }
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; OK; }
#define LAUNCHED fake_count("launch"); OK
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) { LAUNCHED; }
cudaError_t cudaLaunchKernel(const void *k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) { LAUNCHED; }
cudaError_t cudaLaunchKernelExC(const void *c, const void *k, void **a) { LAUNCHED; }
cudaError_t cudaLaunchCooperativeKernel(const void *k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) { LAUNCHED; }
cudaError_t cudaFuncGetAttributes(int *a, const void *f)
{
    memset(a, 0, 144);
    a[6] = 1024, a[7] = 64, a[8] = a[9] = 90; /* threads, registers, versions */
    OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *f, int b, size_t s, unsigned flags)
{ *n = 2; OK; }
const char *cudaGetErrorName(cudaError_t e) { return "fake"; }
const char *cudaGetErrorString(cudaError_t e) { return "fake"; }
