// SPDX-License-Identifier: Apache-2.0
// 4-node orbit counts the plain way, for bench_node_orbits.py to compare with: one thread, one item after another,
// compiled with -O2. Nodes are ranked by (degree, id). Triangles are found by marks; 4-cliques by bit rows among the
// out-neighbours of their lowest node; 4-cycles from the paths below their highest node; the rest are linear equations
// (Hočevar and Demšar, 2014; Ortmann and Brandes, 2017).
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace {

int64_t pairs(int64_t x) { return x * (x - 1) / 2; }

struct Graph {
  int64_t n, m;
  std::vector<int64_t> row, split, out;  // rows, first higher neighbour of each, first directed edge v -> u of each
  std::vector<int32_t> col, order;       // neighbours by rank, ascending; the id of each rank

  Graph(int64_t nodes, int64_t edges, const int64_t* source, const int64_t* target)
      : n(nodes), m(edges), row(n + 1), split(n), out(n + 1), col(2 * m), order(n) {
    std::vector<int64_t> degree(n), next(n + 1);
    for (int64_t e = 0; e < m; ++e) ++degree[source[e]], ++degree[target[e]];
    // Counting sort by degree keeps ids in order.
    for (int64_t v = 0; v < n; ++v) ++next[degree[v] + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    std::vector<int32_t> rank(n);
    for (int64_t v = 0; v < n; ++v) {
      rank[v] = int32_t(next[degree[v]]++);
      order[rank[v]] = int32_t(v);
    }
    for (int64_t r = 0; r < n; ++r) row[r + 1] = row[r] + degree[order[r]];
    // Rows in any order, then transposed: visiting them by rank makes the new rows ascend.
    std::vector<int32_t> unsorted(2 * m);
    next.assign(row.begin(), row.end());
    for (int64_t e = 0; e < m; ++e) {
      const int32_t u = rank[source[e]], v = rank[target[e]];
      unsorted[next[u]++] = v, unsorted[next[v]++] = u;
    }
    next.assign(row.begin(), row.end());
    for (int64_t r = 0; r < n; ++r) {
      split[r] = row[r];
      for (int64_t p = row[r]; p < row[r + 1]; ++p) {
        if (unsorted[p] < r) ++split[r];
        col[next[unsorted[p]]++] = int32_t(r);
      }
      out[r + 1] = out[r] + row[r + 1] - split[r];
    }
  }

  int64_t degree(int64_t v) const { return row[v + 1] - row[v]; }
  int64_t outdegree(int64_t v) const { return row[v + 1] - split[v]; }
  const int32_t* higher(int64_t v) const { return col.data() + split[v]; }
};

struct Counts {
  std::vector<int32_t> t;            // of each directed edge
  std::vector<int64_t> k4, c4, n12;  // of each node
  int64_t words = 0;                 // population counts

  explicit Counts(const Graph& g) : t(g.m), k4(g.n), c4(g.n), n12(g.n) {}
};

void count_triangles_and_cliques(const Graph& g, Counts& c) {
  std::vector<int32_t> mark(g.n);  // 1 + position among the out-neighbours of v
  std::vector<uint64_t> bits;
  std::vector<int64_t> twice;
  std::vector<std::pair<int32_t, int32_t>> local;  // edges among the out-neighbours of v
  for (int64_t v = 0; v < g.n; ++v) {
    const int64_t d = g.outdegree(v), width = (d + 63) / 64;
    const int32_t* near = g.higher(v);
    for (int64_t i = 0; i < d; ++i) mark[near[i]] = int32_t(i + 1);
    local.clear();
    for (int64_t i = 0; i < d; ++i) {
      const int32_t u = near[i], *far = g.higher(u);
      for (int64_t k = 0; k < g.outdegree(u); ++k) {
        const int32_t j = mark[far[k]] - 1;
        if (j < 0) continue;
        ++c.t[g.out[v] + i], ++c.t[g.out[v] + j], ++c.t[g.out[u] + k];
        local.emplace_back(int32_t(i), j);
      }
    }
    for (int64_t i = 0; i < d; ++i) mark[near[i]] = 0;
    if (local.size() < 3) continue;
    bits.assign(d * width, 0);
    for (const auto& [i, j] : local) {
      bits[i * width + j / 64] |= uint64_t(1) << (j % 64);
      bits[j * width + i / 64] |= uint64_t(1) << (i % 64);
    }
    twice.assign(d, 0);
    int64_t total = 0;
    for (const auto& [i, j] : local) {
      int64_t both = 0;
      for (int64_t w = 0; w < width; ++w) both += __builtin_popcountll(bits[i * width + w] & bits[j * width + w]);
      twice[i] += both, twice[j] += both, total += both;
    }
    c.words += int64_t(local.size()) * width;
    c.k4[v] += total / 3;
    for (int64_t i = 0; i < d; ++i) c.k4[near[i]] += twice[i] / 2;
  }
}

// Σ over the triangles (v, a, b) of t(ab) - 1, once all t are known.
void count_fans(const Graph& g, Counts& c) {
  std::vector<int32_t> mark(g.n);
  for (int64_t v = 0; v < g.n; ++v) {
    const int32_t* near = g.higher(v);
    for (int64_t i = 0; i < g.outdegree(v); ++i) mark[near[i]] = int32_t(i + 1);
    for (int64_t i = 0; i < g.outdegree(v); ++i) {
      const int32_t u = near[i], *far = g.higher(u);
      for (int64_t k = 0; k < g.outdegree(u); ++k) {
        const int32_t j = mark[far[k]] - 1;
        if (j < 0) continue;
        c.n12[v] += c.t[g.out[u] + k] - 1;
        c.n12[u] += c.t[g.out[v] + j] - 1;
        c.n12[far[k]] += c.t[g.out[v] + i] - 1;
      }
    }
    for (int64_t i = 0; i < g.outdegree(v); ++i) mark[near[i]] = 0;
  }
}

// Cycles with highest node v: two of the paths v - u - w below it with the same w.
void count_cycles(const Graph& g, Counts& c) {
  std::vector<int32_t> count(g.n), ends(g.n);
  for (int64_t v = 0; v < g.n; ++v) {
    int64_t size = 0;
    for (int64_t p = g.row[v]; p < g.split[v]; ++p) {
      const int32_t u = g.col[p];
      for (int64_t q = g.row[u]; g.col[q] < v; ++q) {  // v itself is in the row
        const int32_t w = g.col[q];
        ends[size] = w;
        size += count[w]++ == 0;
      }
    }
    for (int64_t p = g.row[v]; p < g.split[v]; ++p) {
      const int32_t u = g.col[p];
      int64_t others = 0;
      for (int64_t q = g.row[u]; g.col[q] < v; ++q) others += count[g.col[q]] - 1;
      c.c4[u] += others;
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t cycles = pairs(count[ends[i]]);
      c.c4[v] += cycles, c.c4[ends[i]] += cycles;
      count[ends[i]] = 0;
    }
  }
}

void solve(const Graph& g, const Counts& c, int64_t* orbits) {
  std::vector<int64_t> t(g.n), s(g.n);  // triangles of each node; Σ of d(u) - 1 over its neighbours u
  std::vector<int64_t> n4(g.n), n6(g.n), n9(g.n), n10(g.n), n13(g.n);
  for (int64_t v = 0; v < g.n; ++v) {
    for (int64_t i = 0; i < g.outdegree(v); ++i) {
      const int64_t u = g.higher(v)[i], both = c.t[g.out[v] + i];
      t[v] += both, t[u] += both;
      s[v] += g.degree(u) - 1, s[u] += g.degree(v) - 1;
      n6[v] += pairs(g.degree(u) - 1), n6[u] += pairs(g.degree(v) - 1);
      n10[v] += both * (g.degree(u) - 2), n10[u] += both * (g.degree(v) - 2);
      n13[v] += pairs(both), n13[u] += pairs(both);
    }
  }
  for (int64_t v = 0; v < g.n; ++v) t[v] /= 2;
  for (int64_t v = 0; v < g.n; ++v) {
    for (int64_t i = 0; i < g.outdegree(v); ++i) {
      const int64_t u = g.higher(v)[i];
      n9[v] += t[u], n9[u] += t[v];
      n4[v] += s[u], n4[u] += s[v];
    }
  }
  for (int64_t v = 0; v < g.n; ++v) {
    const int64_t d = g.degree(v);
    int64_t* o = orbits + 15 * int64_t(g.order[v]);
    o[0] = d;
    o[1] = s[v] - 2 * t[v];
    o[2] = pairs(d) - t[v];
    o[3] = t[v];
    o[14] = c.k4[v];
    o[13] = n13[v] - 3 * o[14];
    o[12] = c.n12[v] - 3 * o[14];
    o[8] = c.c4[v] - o[13] - o[12] - 3 * o[14];
    o[11] = t[v] * (d - 2) - 2 * o[13] - 3 * o[14];
    o[10] = n10[v] - 2 * o[13] - 2 * o[12] - 6 * o[14];
    o[9] = n9[v] - 2 * t[v] - 2 * o[12] - 3 * o[14];
    o[7] = pairs(d) * (d - 2) / 3 - o[11] - o[13] - o[14];
    o[6] = n6[v] - o[9] - o[10] - o[13] - 2 * o[12] - 3 * o[14];
    o[5] = (d - 1) * s[v] - 2 * t[v] - 2 * o[8] - 2 * o[11] - o[10] - 4 * o[13] - 2 * o[12] - 6 * o[14];
    o[4] = n4[v] - d * (d - 1) - 2 * t[v] - 2 * o[8] - 2 * o[9] - o[10] - 2 * o[13] - 4 * o[12] - 6 * o[14];
  }
}

}  // namespace

// Induced counts, orbits (n, 15), of the undirected edges source[e] - target[e]: distinct and without loops, which is
// not checked. Returns how many words' bits were counted.
extern "C" int64_t scalar_orbits(int64_t n, int64_t m, const int64_t* source, const int64_t* target, int64_t* orbits) {
  const Graph g(n, m, source, target);
  Counts c(g);
  count_triangles_and_cliques(g, c);
  count_fans(g, c);
  count_cycles(g, c);
  solve(g, c, orbits);
  return c.words;
}

// What a scan does at least for each item: read an id, and a counter at that place. `size` is a multiple of 4.
extern "C" int64_t scan(int64_t rounds, int64_t size, const int32_t* ids, const uint16_t* counters) {
  int64_t a = 0, b = 0, c = 0, d = 0;  // one sum would wait for itself
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < size; i += 4) {
      a += counters[ids[i]];
      b += counters[ids[i + 1]];
      c += counters[ids[i + 2]];
      d += counters[ids[i + 3]];
    }
    asm volatile("" ::: "memory");  // read them again in the next round
  }
  return a + b + c + d;
}
