// SPDX-License-Identifier: Apache-2.0
// Python module innerloop._cpu: argument checks, then the kernel of the chosen instruction set. Outputs are
// allocated by the caller and come first; the number of threads is always explicit.
#include <pybind11/pybind11.h>

#include <exception>
#include <string>

#include "core/kernels.h"

namespace py = pybind11;

void bind_attention(py::module_& m);
void bind_bellman_ford(py::module_& m);
void bind_infonce(py::module_& m);
void bind_match(py::module_& m);
void bind_motif_grid(py::module_& m);
void bind_motif_sums(py::module_& m);
void bind_motifs(py::module_& m);
void bind_nbfnet_layer(py::module_& m);
void bind_rel_graph(py::module_& m);
void bind_relational_spmm(py::module_& m);
void bind_subgraph_attention(py::module_& m);

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "innerloop CPU kernels";
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const il::OutOfMemory& missing) {
      const std::string text = "innerloop: no memory for " + std::to_string(missing.bytes) + " bytes of scratch";
      PyErr_SetString(PyExc_MemoryError, text.c_str());
    }
  });
  bind_attention(m);
  bind_bellman_ford(m);
  bind_infonce(m);
  bind_match(m);
  bind_motif_grid(m);
  bind_motif_sums(m);
  bind_motifs(m);
  bind_nbfnet_layer(m);
  bind_rel_graph(m);
  bind_relational_spmm(m);
  bind_subgraph_attention(m);
  m.def("isa", [] { return il::kernels().isa; });
  m.def("isas", [] { return il::available_isas(); });
}
