"""Registers of the CUDA kernels, from what nvcc prints."""

from benchmarks import ptxas

REPORT = """
ptxas info    : Compiling entry function '_Z3oneIfEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z3oneIfEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z3twoIdEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z3twoIdEvPT_
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_variants_are_found_with_their_spills() -> None:
    assert ptxas.variants(REPORT) == [
        ptxas.Variant("_Z3oneIfEvPT_", 90, 80, 0, 0),
        ptxas.Variant("_Z3twoIdEvPT_", 90, 255, 8, 16),
    ]


def test_a_kernel_is_a_line_with_the_range_of_its_variants() -> None:
    found = [
        ("sample<float, float, 1>", 80),
        ("sample<float, float, 4>", 79),
        ("sample<float16, float, 8>", 96),
        ("sample<float, double, 1>", 114),
        ("sum_parts<float, double>", 20),
        ("normals_of_points", 40),
        ("sample_of_levels<4, 2>", 90),
        ("sample_of_levels<1, 1>", 52),
    ]
    assert list(ptxas.table(found))[2:] == [
        "| `normals_of_points` | 40 | 40 | 40 | 40 |",
        "| `sample_of_levels` | 52 to 90 |  |  |  |",
        "| `sample` | 79 to 80 |  | 96 |  |",
        "| `sample`, float64 coordinates | 114 |  |  |  |",
        "| `sum_parts` | 20 |  |  |  |",
    ]
