// The vector loops against the loops that take one number at a time, without PyTorch: for any machine that the
// compiler can compile for. Prints what differs; the exit status is how much.
#include <cstdio>
#include <random>

#include "gradient_maps.h"
#include "maps.h"
#include "winners.h"

using namespace ulsam;

int failures = 0;

template <class F>
void compare(const char* what, const Shape& s, const std::vector<F>& found, const std::vector<F>& expected, F least) {
  F most = least;
  for (F e : expected) most = std::max(most, std::abs(e));
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(found[i] - expected[i]) <= 64 * std::numeric_limits<F>::epsilon() * most)) {
      std::printf("%s of %ldx%ldx%ldx%ld: %g at %zu, expected %g\n", what, long(s.N), long(s.C), long(s.H), long(s.W),
                  double(found[i]), i, double(expected[i]));
      ++failures;
      return;
    }
}

template <class T>
void check(Shape s, bool channels_last, bool relu) {
  using F = typename std::conditional<std::is_same<T, double>::value, double, float>::type;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  const int64_t size = s.N * s.C * s.P();
  const Strides strides = channels_last ? Strides{s.C * s.P(), 1, s.W * s.C, s.C} : Strides{s.C * s.P(), s.P(), s.W, 1};
  std::vector<T> x(size), D(size), y(size), dx(size), y_exact(size), dx_exact(size);
  for (T& t : x) put(&t, F(std::round(2 * normal(random)) / 2));  // ties
  for (T& t : D) put(&t, F(normal(random)));
  auto draw = [&](int64_t n) {
    std::vector<F> list(n);
    for (F& f : list) f = F(normal(random));
    return list;
  };
  std::vector<F> scale = draw(s.C);
  scale[0] = 0;
  const Channels<F> channels(s, scale, draw(s.C), draw(s.C), draw(s.g), relu);
  const View<const T> X{x.data(), strides}, Ds{D.data(), strides};
  const int64_t P = s.P();
  std::vector<F> zero(s.C, F(0));
  for (int64_t i = 0; i < s.N * s.g; ++i) {
    const int64_t n = i / s.g, k = i % s.g, c0 = k * s.G();
    std::vector<F> z(P), z_exact(P), a(padded<F>(P) + LANES<F>), dl(padded<F>(P) + LANES<F>);
    const Cut rows = strips<F>(s);
    Scratch<F> scratch(std::max(logits_scratch<F>(s), Strip<F>::room(s)));
    for (int64_t j = 0; j < rows.parts; ++j, scratch.reset())
      logits<F, T>(z.data(), X.at(n, c0), bounds_of(X, s), s, k, channels, rows.begin(j), rows.end(j), scratch);
    exact_logits<F, T>(z_exact.data(), X.at(n, c0), s, k, channels);
    compare<F>("logits", s, z, z_exact, F(s.G()));
    softmax(a.data(), z_exact.data(), P, Affine<F>{1, 0, false});
    double sum = 0;
    for (int64_t p = 0; p < P; ++p) sum += a[p];
    compare<F>("softmax", s, {F(sum)}, {F(1)}, F(std::sqrt(P)));
    if (!reweight<F, T, T>(View<T>{y.data(), strides}.at(n, c0), X.at(n, c0), a.data(), s, 0, s.H)) ++failures;
    exact_reweight<F, T, T>(View<T>{y_exact.data(), strides}.at(n, c0), X.at(n, c0), a.data(), s);
    for (int64_t p = 0; p < P; ++p) dl[p] = F(normal(random));
    const Strip<F> strip(s, scratch);
    for (int64_t at = 0; at < s.G(); at += LANES<F>) {
      const int64_t from = std::max<int64_t>(0, std::min(at, s.G() - LANES<F>));
      const int count = int(std::min<int64_t>(LANES<F>, s.G() - from));
      auto of = [&](const std::vector<F>& list) {
        Vec<F> v;
        for (int j = 0; j < LANES<F>; ++j) v[j] = list[c0 + from + std::min(j, count - 1)];
        return v;
      };
      Factors<F> f{of(channels.kappa), of(channels.size), of(channels.shift), Vec<F>{},
                   of(channels.scale) * of(channels.v)};
      const Order order = order_of<F>(strides, s);
      const Lanes<const T> lanes{X.at(n, c0 + from), count, order}, of_D{Ds.at(n, c0 + from), count, order};
      const Lanes<T> to{View<T>{dx.data(), strides}.at(n, c0 + from), count, order};
      relu ? route<F, true, T, T>(f, to, of_D, lanes, a.data(), dl.data(), s, strip, 0, strip.rows.parts)
           : route<F, false, T, T>(f, to, of_D, lanes, a.data(), dl.data(), s, strip, 0, strip.rows.parts);
      for (int j = 0; j < count; ++j) {
        const int64_t c = c0 + from + j;
        const auto exact = exact_route<F, T, T>(View<T>{dx_exact.data(), strides}.at(n, c), Ds.at(n, c), X.at(n, c),
                                                a.data(), dl.data(), s, channels.scale[c], channels.shift[c],
                                                channels.kappa[c], F(0), channels.scale[c] * channels.v[c], relu);
        compare<F>("sums", s, {F(f.sx[j]), F(f.ss[j])}, {exact.sx, exact.ss}, F(P));
      }
    }
  }
  auto numbers = [](const std::vector<T>& list) {
    std::vector<F> values;
    for (const T& t : list) values.push_back(F(get(&t)));
    return values;
  };
  const F store = std::is_same<T, F>::value ? 1 : F(1e5);  // an ulp of 16 bits
  compare<F>("y", s, numbers(y), numbers(y_exact), store);
  compare<F>("dx", s, numbers(dx), numbers(dx_exact), store);
}

int main() {
  int count = 0;
  for (int64_t H : {1, 2, 3, 7, 20})
    for (int64_t W : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 65})
      for (int64_t C : {2, 6, 18, 34})
        for (bool channels_last : {false, true}) {
          const bool relu = (H + W + C) % 2;
          check<float>({2, C, H, W, 2}, channels_last, relu);
          check<double>({1, C, H, W, 2}, channels_last, !relu);
          check<bfloat16>({1, C, H, W, 2}, channels_last, relu);
          check<float16>({1, C, H, W, 2}, channels_last, !relu);
          count += 4;
        }
  std::printf("%d cases, vectors of %d bytes, %d failures\n", count, ULSAM_VECTOR_BYTES, failures);
  return failures != 0;
}
