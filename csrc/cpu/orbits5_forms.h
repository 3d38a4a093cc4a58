// SPDX-License-Identifier: Apache-2.0
// The 5-node edge orbits 12 to 67 as closed forms of the sums that orbits5.h collects, all non-induced, and the step
// from non-induced to induced counts.
#pragma once

#include "cpu/orbit_tables.h"
#include "cpu/orbits5.h"

namespace il {
namespace IL_ISA {
namespace {

// What the closed forms take from one end of an edge: non-induced node counts, and the edge's own share at that end.
struct End {
  int64_t d, s, far_steps, t, n6, n9, n10, n13, fan, c4, k4;
  int64_t fan_here;  // Σ_z t(xz) - 1 with x this end
};

IL_INLINE End end_of(const Counts& c, const NodeSums* nodes, int64_t v, int64_t fan_here) {
  const NodeSums& s = nodes[v];
  const int64_t around = s.n4 + s.degree * (s.degree - 1) + 2 * s.triangles;  // Σ over neighbours of S
  return {s.degree, s.steps, around, s.triangles, s.n6, s.n9, s.n10, s.n13, c.fan[v], c.c4[v], c.k4[v], fan_here};
}

// f(x, y) + f(y, x)
template <class F>
IL_INLINE int64_t both(const End& x, const End& y, F&& f) {
  return f(x, y) + f(y, x);
}

// Non-induced counts of the edge orbits 12 to 67.
IL_INLINE void edge_row(const End& ex, const End& ey, const EdgeSums& e, const int64_t* second, int64_t t, int64_t c4,
                        int64_t k4, int64_t far, int64_t* out) {
  using E = const End&;
  const int64_t fan = ex.fan_here + ey.fan_here, dd = ex.d + ey.d;
  const auto sum = [&](auto&& f) { return both(ex, ey, f); };
  // Paths y a b that avoid x.
  const auto paths = [&](E x, E y) { return y.s - (x.d - 1) - t; };
  out[12] = sum([&](E x, E y) { return y.far_steps - y.d * (y.d - 1) - 2 * y.t - paths(y, x) - t * (x.d - 2) - c4; });
  out[13] = sum([&](E x, E y) { return (x.d - 1) * paths(x, y); }) - 2 * far - 2 * c4;
  out[14] = sum([&](E x, E y) { return y.n6 - pairs(x.d - 1); }) - 2 * far;
  out[15] = sum([&](E x, E y) { return paths(x, y) * (y.d - 2) - 2 * (y.t - t); });
  out[16] = sum([&](E x, E y) { return pairs(x.d - 1) * (y.d - 1) - t * (x.d - 2); });
  out[17] = sum([&](E x, E) { return triples(x.d - 1); });
  out[18] = sum([&](E x, E y) { return y.n10 - t * (x.d - 2); }) - 2 * far - fan;
  out[19] = (dd - 4) * far - fan;
  out[20] = t * (ex.d - 2) * (ey.d - 2) - t * (t - 1);
  out[21] = sum([&](E x, E y) { return y.n9 - x.t + t; }) - fan;
  out[22] = sum([&](E x, E y) { return (y.t - t) * (x.d - 1); }) - fan;
  out[23] = e.steps - t * (dd - 2) - fan;
  out[24] = t * sum(paths) - 2 * far - fan;
  out[25] = sum([&](E, E y) { return (y.t - t) * (y.d - 3); });
  out[26] = e.n26;
  out[27] = sum([&](E x, E) { return t * pairs(x.d - 2); });
  out[28] = e.n28;
  out[29] = sum([&](E, E y) { return y.c4 - c4; }) - 2 * pairs(t);
  out[30] = e.n30 - fan;
  out[31] = c4 * (dd - 4) - fan;
  out[32] = ex.n13 + ey.n13 - 2 * pairs(t) - fan;
  out[33] = e.n33;
  out[34] = sum([&](E x, E) { return x.fan_here * (x.d - 3); });
  out[35] = pairs(t) * (dd - 6);
  out[36] = e.n36;
  out[37] = sum([&](E x, E) { return t * (x.t - t); }) - fan;
  out[38] = ex.fan + ey.fan - fan - 2 * k4;
  out[39] = second[0] - 4 * k4;
  out[40] = sum([&](E x, E y) { return y.fan_here * (x.d - 2); }) - 4 * k4;
  out[41] = (t - 1) * far - 2 * k4;
  out[42] = e.n42;
  out[43] = e.n43 / 2 - fan;
  out[44] = e.n44 - 2 * fan;
  out[45] = e.cycles - fan - 2 * t * (t - 1);
  out[46] = t * c4 - fan;
  out[47] = e.n47;
  out[48] = triples(t);
  out[49] = ex.k4 + ey.k4 - 2 * k4;
  out[50] = e.n50;
  out[51] = k4 * (dd - 6);
  out[52] = second[1] - fan - 4 * k4;
  out[53] = second[2] - 2 * t * (t - 1) - 4 * k4;
  out[54] = e.n54;
  out[55] = (t - 1) * fan - 4 * k4;
  out[56] = e.n56 - fan;
  out[57] = e.n57;
  out[58] = e.n58 / 2;
  out[59] = e.cliques - 4 * k4;
  out[60] = e.n60 / 2;
  out[61] = e.n61;
  out[62] = k4 * (t - 2);
  out[63] = e.n63 / 2;
  out[64] = e.n64;
  out[65] = e.n65;
  out[66] = e.n66;
  out[67] = e.n67;
}

template <int N>
IL_INLINE void subtract_larger(const Overlap (&table)[N], int64_t* counts) {
  for (const Overlap& term : table) counts[term.orbit] -= int64_t(term.coefficient) * counts[term.larger];
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
