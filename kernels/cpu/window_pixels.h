// Logits of rows of a map in PIXELS order: z[p] = b + sum over c of v act_u(size max over W(p) of kappa x + shift).
//
// A few vectors of channels are packed, rows and pixels behind each other: in memory the pixels of one vector lie so
// far apart that L1 holds few of them. Then a vector walks along two rows at once: of each column it takes the maxima
// of the two windows' rows, and of the last three columns the maximum, so an output costs two loads. Each lane adds its
// products to a sum per pixel, which stays in L1; the lanes are added up when all channels are through. The last vector
// ends with the subspace's last channel; its lanes that the vector before it has had already count as 0.
#pragma once

#include "parameters.h"

namespace ulsam {

// Channels of `walk`, in the lanes.
template <class F>
struct LaneTerms {
  Vec<F> size, shift, v;  // weight, or size, shift and v of v act_u(size m + shift)
};

// Two rows of sums, `sums` and `sums + W vectors`; rows: kappa x of rows r - 1, r, r + 1, r + 2.
template <class F, bool RELU>
ULSAM_APART void walk(Vec<F>* sums, const Vec<F>* const* rows, int64_t W, const LaneTerms<F>& terms) {
  using V = Vec<F>;
  const Vec<F> *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
  const V size = terms.size, shift = terms.shift, v = terms.v;
  auto add = [&](V* sum, V m) {
    if constexpr (RELU) *sum += v * relu<F>(m * size + shift);
    else *sum += size * m;
  };
  V p = maximum(*b, *c);
  V t0 = maximum(*a, p), t1 = maximum(p, *d), q0 = t0, q1 = t1;  // q: maximum of this pixel and the one before
  for (int64_t w = 1; w < W; ++w) {
    p = maximum(b[w], c[w]);
    const V n0 = maximum(a[w], p), n1 = maximum(p, d[w]);
    add(sums + w - 1, maximum(q0, n0)), add(sums + W + w - 1, maximum(q1, n1));
    q0 = maximum(t0, n0), q1 = maximum(t1, n1);
    t0 = n0, t1 = n1;
  }
  add(sums + W - 1, q0), add(sums + 2 * W - 1, q1);
}

constexpr int PACKED = 2;  // vectors of channels: a cache line of float32

// Rows that are walked before the next channels: their sums and what is packed of them stay in L2, mostly in L1.
inline Cut walked_rows(const Shape& s, int64_t rows) { return cut(rows, std::max<int64_t>(2, 1536 / s.W), 2); }

template <class F>
int64_t pixels_scratch(const Shape& s) {
  const int64_t rows = walked_rows(s, s.H).size;
  return Scratch<F>::rounded((rows + 1) * s.W * LANES<F>) +
         PACKED * Scratch<F>::rounded((rows + 2) * s.W * LANES<F>);
}

// z [P] of image and subspace k in rows [r0, r1), from x at its first channel.
template <class F, class T>
ULSAM_APART void logits_of_pixels(F* z, View<const T> x, const Shape& s, int64_t k, const Channels<F>& channels,
                                  int64_t r0, int64_t r1, Scratch<F>& scratch) {
  constexpr int L = LANES<F>;
  const int64_t G = s.G(), c0 = k * G, W = s.W;
  const Cut cut_rows = walked_rows(s, r1 - r0);
  Vec<F>* const sums = (Vec<F>*)scratch.take((cut_rows.size + 1) * W * L);
  Vec<F>* packed[PACKED];
  for (auto& p : packed) p = (Vec<F>*)scratch.take((cut_rows.size + 2) * W * L);
  for (int64_t j = 0; j < cut_rows.parts; ++j) {
    const int64_t begin = r0 + cut_rows.begin(j), end = r0 + cut_rows.end(j);
    const int64_t first = std::max<int64_t>(begin - 1, 0), last = std::min(end + 1, s.H);
    std::fill(sums, sums + (cut_rows.size + 1) * W, Vec<F>{});
    for (int64_t i = 0; i < G; i += PACKED * L) {
      LaneTerms<F> terms[PACKED];
      Vec<F> kappa[PACKED];
      int64_t at[PACKED];
      int count = 0;
      for (; count < PACKED && i + count * L < G; ++count) {
        const int64_t from = i + count * L, c = at[count] = std::min(from, G - L), one = c0 + c;
        Mask<F> counted;
        for (int l = 0; l < L; ++l) counted[l] = -(c + l >= from);
        const F* const size = channels.relu ? &channels.size[one] : &channels.weight[one];
        auto of = [&](const F* list) { return (Vec<F>)((Mask<F>)load(list) & counted); };
        terms[count] = {channels.relu ? load(size) : of(size), load(&channels.shift[one]), of(&channels.v[one])};
        kappa[count] = load(&channels.kappa[one]);
      }
      for (int64_t r = first; r < last; ++r) {
        const T* p = x.row(r);
        const int64_t to = (r - first) * W;
        for (int64_t w = 0; w < W; ++w, p += x.s.w)
          for (int m = 0; m < count; ++m) packed[m][to + w] = load<F>(p + at[m]) * kappa[m];
      }
      for (int m = 0; m < count; ++m)
        for (int64_t r = begin; r < end; r += 2) {
          auto row = [&](int64_t r) { return packed[m] + (std::min(std::max(r, first), last - 1) - first) * W; };
          const Vec<F>* const rows[4] = {row(r - 1), row(r), row(r + 1), row(r + 2)};
          Vec<F>* const sum = sums + (r - begin) * W;
          channels.relu ? walk<F, true>(sum, rows, W, terms[m]) : walk<F, false>(sum, rows, W, terms[m]);
        }
    }
    for (int64_t p = 0; p < (end - begin) * W; ++p) z[begin * W + p] = sum_lanes<F>(sums[p]) + channels.bias[k];
  }
}

}  // namespace ulsam
