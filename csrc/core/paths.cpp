// SPDX-License-Identifier: Apache-2.0
#include "core/paths.h"

#include <algorithm>
#include <limits>

namespace il {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

struct Entry {
  double total;  // sum of the weights of the steps so far
  int32_t edge;  // CSR position of the last step
  int32_t rank;  // of its beginning, among those of the edge's source
};

// Keeps the `beam` largest of a row, largest first, the earlier of two equals first.
void insert(Entry* row, int64_t beam, const Entry& entry) {
  if (!(entry.total > row[beam - 1].total)) return;
  int64_t i = beam - 1;
  for (; i > 0 && entry.total > row[i - 1].total; --i) row[i] = row[i - 1];
  row[i] = entry;
}

}  // namespace

std::vector<RankedPath> best_paths(const CsrView& graph, const double* weight, int64_t steps, int64_t source,
                                   int64_t target, int64_t count, int64_t beam) {
  const Entry none = {kNone, -1, 0};
  std::vector<std::vector<Entry>> layers(steps + 1);
  layers[0].assign(graph.num_nodes * beam, none);
  layers[0][source * beam].total = 0;
  std::vector<RankedPath> found;
  for (int64_t t = 1; t <= steps; ++t) {
    layers[t].assign(graph.num_nodes * beam, none);
    const double* w = weight + (t - 1) * graph.num_edges;
    for (int64_t v = 0; v < graph.num_nodes; ++v) {
      Entry* row = &layers[t][v * beam];
      for (int32_t e = graph.indptr[v]; e < graph.indptr[v + 1]; ++e) {
        const int64_t x = graph.src[e];
        if (x == target) continue;
        const Entry* beginnings = &layers[t - 1][x * beam];
        for (int64_t rank = 0; rank < beam && beginnings[rank].total > kNone; ++rank) {
          insert(row, beam, {beginnings[rank].total + w[graph.eid[e]], e, static_cast<int32_t>(rank)});
        }
      }
    }
    for (int64_t rank = 0; rank < beam; ++rank) {
      const Entry* entry = &layers[t][target * beam + rank];
      if (!(entry->total > kNone)) break;
      RankedPath path{entry->total / static_cast<double>(t), std::vector<int32_t>(t)};
      for (int64_t step = t; step > 0; --step) {
        path.edges[step - 1] = graph.eid[entry->edge];
        entry = &layers[step - 1][graph.src[entry->edge] * beam + entry->rank];
      }
      found.push_back(std::move(path));
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const RankedPath& a, const RankedPath& b) { return a.weight > b.weight; });
  if (static_cast<int64_t>(found.size()) > count) found.resize(count);
  return found;
}

}  // namespace il
