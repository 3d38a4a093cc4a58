// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

// Graph b of a disjoint union has the nodes [ptr[b], ptr[b + 1]).
struct GraphBatch {
  SimpleGraph graph;
  int64_t num_graphs;
  const int64_t* ptr;  // [num_graphs + 1], ascending from 0 to the number of nodes
  int threads;
  Poll poll;
  bool closed;    // out: false where an edge joins two of the graphs; the results are then not to be used
  bool finished;  // out: false where `poll` asked to stop
};

struct Closeness {
  GraphBatch batch;
  const int64_t* order;  // [n], the nodes of each graph, counted from its first one, or null
  int64_t samples;       // the first so many nodes of each component in `order` are its sources
  double* out;           // [n]
};

}  // namespace il
