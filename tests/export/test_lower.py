"""Lowering: every node of ours becomes a call of a function in the form asked for."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from regionrt.export import ExportError
from regionrt.export.passes.lower import base_op, lower
from regionrt.plugins.ops import DOMAIN

ONLY_IN = {"native": {"NonMaxSuppression", "RoiAlign"}, "portable": {"Loop"}}
# TensorRT for RTX has no implementation of these (RECIPES of the project: parser facts)
NOT_PORTABLE = {"NonMaxSuppression", "NonZero", "RoiAlign", "Compress", "Unique", "MaxRoiPool"}


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for function in model.functions.values() for node in function.all_nodes()}


@pytest.mark.parametrize("form", ["native", "portable"])
def test_every_node_of_ours_calls_a_function_of_its_own(exported, form):
    model = lower(exported.abstract, form)
    ours = [node for node in model.graph if node.domain == DOMAIN]
    assert len({node.op_type for node in ours}) == len(ours) == len(model.functions)
    assert all((DOMAIN, node.op_type, "") in model.functions for node in ours)
    assert [base_op(node) for node in ours] == [n.op_type for n in exported.abstract.graph if n.domain == DOMAIN]
    assert operators(model) >= ONLY_IN[form]


def test_the_portable_form_keeps_to_what_engines_have(exported):
    found = operators(lower(exported.abstract, "portable"))
    assert not found & NOT_PORTABLE
    for function in lower(exported.abstract, "portable").functions.values():
        for node in function.all_nodes():
            if node.op_type.startswith("Scatter"):
                assert node.attributes.get_string("reduction", "none") == "none"


def test_the_abstract_model_is_left_as_it_was(exported):
    before = ir.to_proto(exported.abstract).SerializeToString()
    lower(exported.abstract, "native")
    assert ir.to_proto(exported.abstract).SerializeToString() == before


def test_a_form_that_does_not_exist(fixed):
    with pytest.raises(
        ExportError, match="RegionProposals has no form 'graph': choose one of native, plugin, portable"
    ):
        lower(fixed.abstract, "graph")


def test_a_form_that_cannot_express_the_model_says_so(fixed):
    adaptive = fixed.abstract.clone()
    (node,) = [n for n in adaptive.graph if n.op_type == "RegionRoiAlign"]
    node.attributes.add(ir.AttrInt64("sampling_ratio", 0))
    lower(adaptive, "native")
    with pytest.raises(ExportError, match="needs a fixed sampling ratio"):
        lower(adaptive, "portable")
