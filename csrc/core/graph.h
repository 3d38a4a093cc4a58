// SPDX-License-Identifier: Apache-2.0
// Linear-time construction of the packed CSR that every graph kernel walks.
//
// Packed CSR: one int32 buffer [V, R | indptr (V+1) | src (E) | rel (E) | eid (E)]. Rows are destinations; inside a row
// edges are ordered by (relation, source, position in the user's list), eid is that position: a run of one relation
// reads its row, and adds to its gradient, once (FB15k-237: 544,230 edges, 149,689 runs). One buffer keeps the
// per-call argument count, and so the call overhead, low.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace il {

constexpr int64_t kCsrHeader = 2;

inline int64_t packed_csr_length(int64_t num_nodes, int64_t num_edges) {
  return kCsrHeader + num_nodes + 1 + 3 * num_edges;
}

// False when the buffer is not a packed CSR.
bool unpack_csr(const int32_t* packed, int64_t length, CsrView* out);

// Position of the first id outside [0, limit), or -1.
int64_t first_out_of_range(const int64_t* ids, int64_t n, int64_t limit);

// Three stable counting sorts (source, relation, destination): O(E + V + R).
void build_csr(int32_t* out, const int64_t* src, const int64_t* dst, const int64_t* rel, int64_t num_edges,
               int64_t num_nodes, int64_t num_relations);

// Whether `scalers` [V, 3] (float or double) has equal rows for nodes of equal in-degree.
bool same_by_degree(const CsrView& csr, const void* scalers, bool is_double);

// Removes edges with drop[eid] != 0 and renumbers eid to the remaining list. `out` has room for `kept` edges.
void drop_edges(int32_t* out, const CsrView& csr, const uint8_t* drop, int64_t kept);

}  // namespace il
