"""Conversion, in the formats of others: what a round trip shows, and what only their own code shows."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant

NAMES, GPT2 = "convert/formats/names.py", "convert/formats/transformers_gpt2.py"
INDEPENDENT = ("tests/convert/formats/test_families_independent.py",)

PLANTS = (
    Plant(
        "GPT-2's output projections are not transposed, neither way",
        8,
        (Edit(NAMES, "CONV1D", '"out_proj.weight", ', ""),),
        asks="gpt2 transformers",
        tests=("tests/convert/formats/test_independent.py",),
    ),
    Plant(
        "GPT-2's output projections are not transposed when they are written",
        8,
        (
            Edit(
                GPT2,
                "write_folder",
                "transposed(tensor) if name.endswith(CONV1D)",
                'transposed(tensor) if name.endswith(CONV1D) and "out_proj" not in name',
            ),
        ),
        asks="gpt2 transformers",
        says="differ",
    ),
    Plant(
        "keys and values of Llama change their names",
        8,
        (
            Edit(
                NAMES,
                "LLAMA",
                '"blocks.{i}.attention.k_proj": "model.layers.{i}.self_attn.k_proj"',
                '"blocks.{i}.attention.k_proj": "model.layers.{i}.self_attn.v_proj"',
            ),
            Edit(
                NAMES,
                "LLAMA",
                '"blocks.{i}.attention.v_proj": "model.layers.{i}.self_attn.v_proj"',
                '"blocks.{i}.attention.v_proj": "model.layers.{i}.self_attn.k_proj"',
            ),
        ),
        asks="llama transformers",
        tests=INDEPENDENT,
    ),
    Plant(
        "the epsilon of Llama's norms is not written",
        8,
        (
            Edit(
                "convert/formats/transformers_llama.py",
                "write_llama",
                '"hidden_act": "silu",',
                '"hidden_act": "silu",\n        "rms_norm_eps": 1e-3,',
            ),
        ),
        asks="llama transformers",
        says="differ",
    ),
    Plant(
        "a tied head is written as an untied one",
        8,
        (
            Edit(
                "convert/formats/transformers_llama.py",
                "write_llama",
                '"hidden_act": "silu",',
                '"hidden_act": "silu",\n        "tie_word_embeddings": False,',
            ),
        ),
        asks="llama transformers",
        says="missing|differ",
    ),
    Plant(
        "experts are gathered in reverse",
        8,
        (
            Edit(
                "convert/storage/stacks.py",
                "gather",
                "for number in range(expected)]",
                "for number in reversed(range(expected))]",
            ),
        ),
        asks="deepseek transformers",
        says="differ",
    ),
    Plant(
        "gates and ups of stacked experts change places",
        8,
        (
            Edit(
                "convert/formats/transformers_deepseek_v3.py", "_separated", "gate, up = unwoven", "up, gate = unwoven"
            ),
        ),
        asks="deepseek transformers",
        tests=INDEPENDENT,
    ),
    Plant(
        "the layout of rotary positions is read the other way round",
        8,
        (
            Edit(
                "convert/formats/transformers_deepseek_v3.py",
                "describe",
                '"interleaved" if interleave else "halves"',
                '"halves" if interleave else "interleaved"',
            ),
        ),
        asks="deepseek transformers",
        says="differ",
    ),
    Plant(
        "both moments are the first one in nanoGPT's file",
        8,
        (
            Edit(
                "convert/formats/nanogpt.py",
                "write",
                'contents.moments[f"{moment}.{name}"] for moment',
                'contents.moments[f"exp_avg.{name}"] for moment',
            ),
        ),
        asks="nanogpt nanogpt",
        says="differ",
    ),
    Plant(
        "the step is not written for nanoGPT",
        8,
        (Edit("convert/formats/nanogpt.py", "write", '"iter_num": contents.step', '"iter_num": 0'),),
        asks="nanogpt nanogpt",
        says="differ|step|iter",
    ),
    Plant(
        "the first and the last block change places in mlx-lm's GPT-2",
        8,
        (
            Edit(GPT2, "", "import dataclasses\n", "import dataclasses\nimport re\n"),
            Edit(
                GPT2,
                "write_folder",
                "tensors[translated(name, names)] =",
                'name = re.sub(r"blocks.(\\d)", lambda n: f"blocks.{1 - int(n[1])}", name)\n        '
                "tensors[translated(name, names)] =",
            ),
        ),
        asks="gpt2 mlx-lm",
        says="differ",
    ),
)
