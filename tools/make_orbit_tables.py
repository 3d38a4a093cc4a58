# SPDX-License-Identifier: Apache-2.0
"""Writes csrc/cpu/orbit_tables.h: what the 5-node counts need of the graphlets, from innerloop.reference.GRAPHLETS.

    python tools/make_orbit_tables.py > csrc/cpu/orbit_tables.h && clang-format -i csrc/cpu/orbit_tables.h

OVERLAP: non-induced = induced + Σ coefficient · induced counts of larger orbits, solved from the last orbit on down.
NODE_OF_EDGES: node counts from sums of edge counts over a node's edges. At a node in orbit o of a graphlet a known
number of edges is in each edge orbit, which makes a linear system for each graphlet. Where both classes of a bipartite
graphlet leave it singular, the count of one node orbit is given (SEEDS) and the others follow.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm

from innerloop.reference.node_orbits import GRAPHLETS, _edges, overlap_matrix

SEEDS = (17, 21, 23, 38, 50)


def overlap(per: str) -> list[tuple[int, int, int]]:
    matrix = overlap_matrix(5, per=per)
    size = len(matrix)
    assert all(matrix[o, o] == 1 and not matrix[o, :o].any() for o in range(size))
    return [(o, p, int(matrix[o, p])) for o in reversed(range(size)) for p in range(o + 1, size) if matrix[o, p]]


def node_of_edges() -> list[tuple[int, int, int, int, bool]]:
    """(orbit, divisor, source, coefficient, source is a node orbit): orbit · divisor = Σ coefficient · source."""
    lines = []
    for text, node_orbit, edge_orbit in GRAPHLETS:
        if len(node_orbit) != 5:
            continue
        pairs = _edges(text)
        nodes, edges = sorted(set(node_orbit)), sorted(set(edge_orbit))
        incidence = [
            [
                sum(node_orbit.index(o) in pair and e == x for pair, e in zip(pairs, edge_orbit, strict=True))
                for o in nodes
            ]
            for x in edges
        ]
        sources = [(x, False) for x in edges] + [(o, True) for o in nodes if o in SEEDS]
        rows = incidence + [[int(o == seed) for o in nodes] for seed, is_node in sources[len(edges) :] if is_node]
        for i, orbit in enumerate(nodes):
            if orbit in SEEDS:
                continue
            weights = combination(rows, i)
            divisor = lcm(*(w.denominator for w in weights))
            for (source, is_node), weight in zip(sources, weights, strict=True):
                if weight:
                    lines.append((orbit, divisor, source, int(weight * divisor), is_node))
    return lines


def combination(rows: list[list[int]], unknown: int) -> list[Fraction]:
    """Weights w with Σ w_r rows[r] = the unit vector of `unknown`, by Gauss-Jordan on the transposed system."""
    height, width = len(rows[0]), len(rows)
    system = [[Fraction(rows[r][i]) for r in range(width)] + [Fraction(int(i == unknown))] for i in range(height)]
    pivots, at = [], 0
    for column in range(width):
        pivot = next((i for i in range(at, height) if system[i][column]), None)
        if pivot is None:
            continue
        system[at], system[pivot] = system[pivot], system[at]
        system[at] = [x / system[at][column] for x in system[at]]
        for i in range(height):
            if i != at:
                system[i] = [x - system[i][column] * y for x, y in zip(system[i], system[at], strict=True)]
        pivots.append(column)
        at += 1
    assert at == height, "singular: one more seed is needed"
    weights = [Fraction(0)] * width
    for i, column in enumerate(pivots):
        weights[column] = system[i][-1]
    return weights


def table(kind: str, name: str, rows: list[tuple]) -> str:
    body = ", ".join("{" + ", ".join(str(int(x)) for x in row) + "}" for row in rows)
    return f"constexpr {kind} {name}[] = {{{body}}};\n"


def main() -> None:
    print("// SPDX-License-Identifier: Apache-2.0")
    print("// Written by tools/make_orbit_tables.py, where it is explained.\n#pragma once\n\n#include <cstdint>\n")
    print("namespace il {\nnamespace IL_ISA {\nnamespace {\n")
    print("struct Overlap {\n  uint8_t orbit, larger, coefficient;\n};\n")
    print("struct NodeOfEdges {\n  uint8_t orbit, divisor, source;\n  int8_t coefficient;\n  bool from_node;\n};\n")
    print(table("Overlap", "kNodeOverlap", overlap("node")))
    print(table("Overlap", "kEdgeOverlap", overlap("edge")))
    print(table("NodeOfEdges", "kNodeOfEdges", node_of_edges()))
    print("}  // namespace\n}  // namespace IL_ISA\n}  // namespace il")


if __name__ == "__main__":
    main()
