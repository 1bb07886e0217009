// What the operators read off PyTorch's tensors, by its stable interface.
#pragma once

#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "parameters.h"
#include "softmax.h"
#ifdef ULSAM_OWN_THREADS
#include <thread>
#endif

namespace ulsam {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

template <class T>
constexpr ScalarType type_of() {
  if (std::is_same<T, float>::value) return ScalarType::Float;
  if (std::is_same<T, double>::value) return ScalarType::Double;
  if (std::is_same<T, bfloat16>::value) return ScalarType::BFloat16;
  return ScalarType::Half;
}

// f(T()) with the type in memory of t.
template <class Function>
void with_type(const Tensor& t, Function f) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return f(float());
    case ScalarType::Double: return f(double());
    case ScalarType::BFloat16: return f(bfloat16());
    case ScalarType::Half: return f(float16());
    default: STD_TORCH_CHECK(false, "float32, float64, bfloat16 or float16 expected");
  }
}

// The type of the computation, of maps and of statistics.
inline ScalarType map_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Shape shape_of(const Tensor& x, int64_t g) { return {x.size(0), x.size(1), x.size(2), x.size(3), g}; }

inline Strides strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

inline Tensor empty_strided(const int64_t* size, const int64_t* strides, int64_t dim, ScalarType type) {
  AtenTensorHandle made;
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, size, strides, code, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// A new tensor with the sizes and strides of torch.empty_like(x).
inline Tensor like(const Tensor& x, ScalarType type) {
  const Strides s = strides_of(x);
  const int64_t C = x.size(1), row = C * x.size(3), image = row * x.size(2);
  const bool channels_last = s.c == 1 && s.w == C && s.h == row && s.n == image;
  if (channels_last || x.is_contiguous()) return empty_strided(x.sizes().data(), x.strides().data(), x.dim(), type);
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(x), from(std::optional<ScalarType>(type)), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// A new dense one.
inline Tensor dense(std::initializer_list<int64_t> size, ScalarType type) {
  int64_t strides[4];
  for (int64_t i = size.size() - 1, stride = 1; i >= 0; stride *= std::max<int64_t>(1, size.begin()[i--]))
    strides[i] = stride;
  return empty_strided(size.begin(), strides, size.size(), type);
}

inline Tensor map_of(const Tensor& x, const Shape& s) { return dense({s.N, s.g, s.H, s.W}, map_type(x)); }

// For the gradient of a parameter.
inline Tensor gradient_of(const Tensor& t) { return dense({t.numel()}, t.scalar_type()); }
inline Maybe gradient_of(const Maybe& t) { return t ? Maybe(gradient_of(*t)) : Maybe(); }

template <class T>
using Computed = typename std::conditional<std::is_same<T, double>::value, double, float>::type;

template <class T>
View<const T> view(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == type_of<T>(), "a tensor of another type");
  return {(const T*)t.const_data_ptr(), strides_of(t)};
}

template <class T>
View<T> out(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == type_of<T>(), "a result of another type");
  return {(T*)t.mutable_data_ptr(), strides_of(t)};
}

// A dense map or list of numbers of the computation's type; null where there is none.
template <class F>
F* numbers(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == type_of<F>() && t.is_contiguous(), "numbers of the type of computation expected");
  return (F*)t.mutable_data_ptr();
}
template <class F>
F* numbers(const Maybe& t) {
  return t ? numbers<F>(*t) : nullptr;
}

// [count] of any type and stride; empty where there is none.
template <class F>
std::vector<F> list(const Maybe& t, int64_t count) {
  std::vector<F> values;
  if (!t) return values;
  STD_TORCH_CHECK(t->numel() == count, "a parameter of another size");
  values.resize(count);
  const int64_t step = t->dim() ? t->stride(t->dim() - 1) : 0;
  with_type(*t, [&](auto type) {
    const auto* p = (const decltype(type)*)t->const_data_ptr();
    for (int64_t i = 0; i < count; ++i) values[i] = F(get(p + i * step));
  });
  return values;
}

// The reverse: count values to a list of any type and stride, if there is one.
template <class F>
void write_list(const Maybe& t, const F* values, int64_t count) {
  if (!t) return;
  STD_TORCH_CHECK(t->numel() == count, "a gradient of another size");
  const int64_t step = t->dim() ? t->stride(t->dim() - 1) : 0;
  with_type(*t, [&](auto type) {
    auto* p = (decltype(type)*)t->mutable_data_ptr();
    for (int64_t i = 0; i < count; ++i) put(p + i * step, values[i]);
  });
}

// What a softmax sees of its logits: rows gain and offset of `second` [6, g], or none for 1 and 0.
template <class F>
std::vector<Affine<F>> affine_of(const Maybe& second, int64_t g, bool relu_z) {
  std::vector<Affine<F>> affine(g, Affine<F>{1, 0, relu_z});
  if (const F* const rows = numbers<F>(second))
    for (int64_t k = 0; k < g; ++k) affine[k].gain = rows[k], affine[k].offset = rows[g + k];
  return affine;
}

// range(begin, end) for parts of [0, items), in parallel where there is work; `work`: numbers that an item touches.
template <class Function>
void parallel_ranges(int64_t items, int64_t work, const Function& range) {
#ifdef ULSAM_OWN_THREADS  // ThreadSanitizer does not know how PyTorch's threads wait for each other
  std::thread first(range, 0, items / 2);
  range(items / 2, items);
  first.join();
#else
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, items, grain, range);
#endif
}

// Whether threads that each take whole maps are left without one while others have some. Where none is, a map that is
// read twice is still in the cache the second time: 8x512x14x14 in one subspace, forward + backward 1394 to 1180 us.
inline bool leaves_idle(int64_t maps) {
#ifdef ULSAM_OWN_THREADS
  return true;
#else
  const int64_t threads = torch::stable::get_num_threads();
  return maps < 4 * threads && maps % threads != 0;
#endif
}

// f(i) for each i.
template <class Function>
void parallel(int64_t items, int64_t work, const Function& f) {
  parallel_ranges(items, work, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// f(i, scratch) for each i, with `room` numbers that a thread takes from the allocator once.
template <class F, class Function>
void parallel(int64_t items, int64_t work, int64_t room, const Function& f) {
  parallel_ranges(items, work, [&](int64_t begin, int64_t end) {
    for (Scratch<F> scratch(room); begin < end; ++begin, scratch.reset()) f(begin, scratch);
  });
}

}  // namespace ulsam
