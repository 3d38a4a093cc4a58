// SPDX-License-Identifier: Apache-2.0
// What the bindings say of a launch.
#pragma once

namespace il {

struct MotifLaunch {
  int kernel;  // position in the table of its .cuh file
  unsigned blocks;
  int device;
  void* stream;
};

}  // namespace il
