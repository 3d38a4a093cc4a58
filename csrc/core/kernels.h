// SPDX-License-Identifier: Apache-2.0
// The table of CPU kernels. A new kernel is one line in IL_CPU_KERNELS; every instruction set then has to define
// il::<isa>::<name>, and callers reach the chosen one through kernels().<name>.
#pragma once

#include "cpu/band_attention.h"
#include "cpu/bellman_ford.h"
#include "cpu/closeness.h"
#include "cpu/infonce.h"
#include "cpu/match.h"
#include "cpu/motif_grid.h"
#include "cpu/nbfnet_layer.h"
#include "cpu/node_orbits.h"
#include "cpu/pool_kv.h"
#include "cpu/relational_spmm.h"
#include "cpu/subgraph_attention.h"
#include "cpu/triangles.h"

#define IL_CPU_KERNELS(X)                                                 \
  X(band_attention, (const BandAttention& args))                          \
  X(band_attention_backward, (const BandAttentionBackward& args))         \
  X(bellman_ford, (BellmanFord & args, int threads))                      \
  X(closeness, (Closeness & args))                                        \
  X(fan_sums, (MotifSums & args))                                         \
  X(infonce, (const InfoNce& args))                                       \
  X(infonce_backward, (const InfoNceBackward& args))                      \
  X(infonce_mean, (const InfoNceMean& args))                              \
  X(match, (Match & args))                                                \
  X(motif_grid, (MotifGrid & args))                                       \
  X(motif_sums, (MotifSums & args))                                       \
  X(nbfnet_layer, (const NbfnetLayer& args))                              \
  X(nbfnet_layer_backward, (const NbfnetLayerBackward& args))             \
  X(node_orbits, (NodeOrbits & args))                                     \
  X(orbits_from_sums, (NodeOrbits & args, const MotifSums& sums))         \
  X(pool_kv, (const PoolKv& args))                                        \
  X(pool_kv_backward, (const PoolKvBackward& args))                       \
  X(relational_spmm, (const RelationalSpmm& args))                        \
  X(relational_spmm_backward, (const RelationalSpmmBackward& args))       \
  X(subgraph_attention, (const SubgraphAttention& args))                  \
  X(subgraph_attention_backward, (const SubgraphAttentionBackward& args)) \
  X(triangles, (Triangles & args))

namespace il {

#define IL_DECLARE(name, params) void name params;
namespace baseline {
IL_CPU_KERNELS(IL_DECLARE)
}
namespace avx2 {
IL_CPU_KERNELS(IL_DECLARE)
}
namespace avx512 {
IL_CPU_KERNELS(IL_DECLARE)
}
#undef IL_DECLARE

struct KernelTable {
#define IL_FIELD(name, params) void(*name) params;
  IL_CPU_KERNELS(IL_FIELD)
#undef IL_FIELD
  const char* isa;
};

// Chosen once, on first use: the best set this CPU runs, lowered (never raised) by INNERLOOP_CPU.
const KernelTable& kernels();

// Comma-separated names of the sets this build holds and this CPU runs, lowest first.
const char* available_isas();

}  // namespace il
