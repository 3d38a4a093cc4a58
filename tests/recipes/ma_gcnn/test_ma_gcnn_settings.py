# SPDX-License-Identifier: Apache-2.0
"""Settings of the motif classifier: those of the paper, and errors."""

import pytest

pytest.importorskip("pytorch_lightning")

from innerloop.recipes.ma_gcnn import PROTOCOLS, PUBLISHED, make_config


def test_settings_of_the_paper():
    config = make_config("ma-gcnn", "best-test-epoch")
    assert (config.optimizer, config.momentum, config.lrs, config.batch_size) == ("sgd", 0.9, (1e-3,), 18)
    assert (config.epochs, config.replacement, config.penalty, config.slots) == (1000, True, 0.01, 15)
    assert make_config("m-gcnn").penalty == 0
    ours = {protocol: make_config("ma-gcnn+orbits", protocol) for protocol in PROTOCOLS}
    assert {(config.optimizer, config.lrs, config.penalty) for config in ours.values()} == {("adamw", (3e-3,), 0.3)}
    assert make_config("ma-gcnn+orbits", optimizer="adam").penalty == 0.01
    assert make_config("ma-gcnn", optimizer="adamw", penalty=0.1).penalty == 0.1
    honest = make_config()
    assert (honest.protocol, honest.num_folds, honest.holdout, honest.seeds) == ("honest", 10, 0.1, (0, 1, 2))
    assert honest.lrs == (1e-3, 1e-2)
    assert make_config(epochs=5, lrs=None).epochs == 5
    assert PUBLISHED["MUTAG"]["MA-GCNN (recalled and not checked, test epoch chosen on the test folds)"] == {
        "accuracy %": 93.89,
        "std": 5.24,
    }
    assert {source for source in PUBLISHED["MUTAG"] if "MA-GCNN" not in source} == {
        "PATCHY-SAN (recalled, protocol not checked)",
        "DGCNN (recalled, protocol not checked)",
        "GIN-0 (recalled, gin protocol)",
    }
    assert PUBLISHED["COLLAB"]["GIN (honest, README of diningphil/gnn-comparison)"]["accuracy %"] == 75.6
    assert not any("honest" in source for source in PUBLISHED["MUTAG"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "gin"}, r"variant is 'gin', expected one of m-gcnn, ma-gcnn, ma-gcnn\+orbits, structure-free"),
        ({"protocol": "unshuffled"}, "protocol is 'unshuffled', expected one of honest, gin, best-test-epoch"),
        ({"tie": "random"}, "tie is 'random', expected one of degree"),
        ({"content": "x"}, "content is 'x', expected one of value, onehot"),
        ({"orbit_size": 6}, "orbit_size is 6, expected one of 3, 4, 5"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"num_folds": 1}, "num_folds is 1, expected at least 2"),
        ({"holdout": 0.6}, "holdout is 0.6, expected above 0 and at most 0.5"),
        ({"lrs": []}, r"lrs is \[\], expected at least one"),
        ({"lrs": [float("nan")]}, r"lrs is \[nan\], expected at least one"),
        ({"lrs": [0.1, 0.1]}, r"lrs is \[0.1, 0.1\], expected at least one finite number above 0, and none twice"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\], expected at least one int, none negative and none twice"),
        ({"momentum": -1.0}, "momentum is -1.0, expected a finite number"),
        ({"protocol": "gin", "lrs": [0.1, 0.2]}, r"lrs is \[0.1, 0.2\], expected one with protocol gin"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_unknown_setting():
    with pytest.raises(TypeError, match=r"make_config\(\) got unknown settings \['rate'\]"):
        make_config(rate=1)
