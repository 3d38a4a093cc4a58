// SPDX-License-Identifier: Apache-2.0
#include "core/graph.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace il {
namespace {

// Stable counting sort of the permutation `in` by keys[in[i]]; leaves the bucket starts in `start`.
void counting_pass(const int64_t* keys, int64_t num_keys, const std::vector<int32_t>& in, std::vector<int32_t>& out,
                   std::vector<int32_t>& start) {
  start.assign(num_keys + 1, 0);
  for (int32_t e : in) ++start[keys[e] + 1];
  for (int64_t k = 0; k < num_keys; ++k) start[k + 1] += start[k];
  std::vector<int32_t> next(start.begin(), start.end() - 1);
  for (int32_t e : in) out[next[keys[e]]++] = e;
}

}  // namespace

bool unpack_csr(const int32_t* packed, int64_t length, CsrView* out) {
  if (length < packed_csr_length(0, 0)) return false;
  const int64_t num_nodes = packed[0];
  const int64_t edges3 = length - packed_csr_length(num_nodes, 0);
  if (num_nodes < 0 || packed[1] < 0 || edges3 < 0 || edges3 % 3 != 0) return false;
  const int64_t num_edges = edges3 / 3;
  const int32_t* indptr = packed + kCsrHeader;
  const int32_t* src = indptr + num_nodes + 1;
  *out = {indptr, src, src + num_edges, src + 2 * num_edges, num_nodes, packed[1], num_edges};
  return indptr[0] == 0 && indptr[num_nodes] == num_edges;
}

int64_t first_out_of_range(const int64_t* ids, int64_t n, int64_t limit) {
  for (int64_t i = 0; i < n; ++i) {
    if (ids[i] < 0 || ids[i] >= limit) return i;
  }
  return -1;
}

void build_csr(int32_t* out, const int64_t* src, const int64_t* dst, const int64_t* rel, int64_t num_edges,
               int64_t num_nodes, int64_t num_relations) {
  std::vector<int32_t> order(num_edges), scratch(num_edges), start;
  for (int64_t e = 0; e < num_edges; ++e) order[e] = static_cast<int32_t>(e);
  counting_pass(src, num_nodes, order, scratch, start);
  counting_pass(rel, num_relations, scratch, order, start);
  counting_pass(dst, num_nodes, order, scratch, start);
  out[0] = static_cast<int32_t>(num_nodes);
  out[1] = static_cast<int32_t>(num_relations);
  std::memcpy(out + kCsrHeader, start.data(), (num_nodes + 1) * sizeof(int32_t));
  int32_t* out_src = out + kCsrHeader + num_nodes + 1;
  int32_t* out_rel = out_src + num_edges;
  int32_t* out_eid = out_rel + num_edges;
  for (int64_t i = 0; i < num_edges; ++i) {
    int32_t e = scratch[i];
    out_src[i] = static_cast<int32_t>(src[e]);
    out_rel[i] = static_cast<int32_t>(rel[e]);
    out_eid[i] = e;
  }
}

bool same_by_degree(const CsrView& csr, const void* scalers, bool is_double) {
  const size_t row = 3 * (is_double ? sizeof(double) : sizeof(float));
  const char* rows = static_cast<const char*>(scalers);
  std::vector<int32_t> first;  // node that showed each degree first
  for (int64_t v = 0; v < csr.num_nodes; ++v) {
    const size_t degree = csr.indptr[v + 1] - csr.indptr[v];
    if (degree >= first.size()) first.resize(degree + 1, -1);
    if (first[degree] < 0) first[degree] = static_cast<int32_t>(v);
    if (std::memcmp(rows + first[degree] * row, rows + v * row, row) != 0) return false;
  }
  return true;
}

void drop_edges(int32_t* out, const CsrView& csr, const uint8_t* drop, int64_t kept) {
  std::vector<int32_t> renumber(csr.num_edges);
  int32_t next = 0;
  for (int64_t e = 0; e < csr.num_edges; ++e) {
    renumber[e] = next;
    next += drop[e] == 0;
  }
  out[0] = static_cast<int32_t>(csr.num_nodes);
  out[1] = static_cast<int32_t>(csr.num_relations);
  int32_t* indptr = out + kCsrHeader;
  int32_t* out_src = indptr + csr.num_nodes + 1;
  int32_t* out_rel = out_src + kept;
  int32_t* out_eid = out_rel + kept;
  int32_t k = 0;
  indptr[0] = 0;
  for (int64_t v = 0; v < csr.num_nodes; ++v) {
    for (int32_t i = csr.indptr[v]; i < csr.indptr[v + 1]; ++i) {
      int32_t e = csr.eid[i];
      if (drop[e]) continue;
      out_src[k] = csr.src[i];
      out_rel[k] = csr.rel[i];
      out_eid[k++] = renumber[e];
    }
    indptr[v + 1] = k;
  }
}

}  // namespace il
