"""Values of every kind, for tests that put anything anywhere."""

from hypothesis import strategies as st

scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
           | st.sampled_from(["1e-4", "-1", "lora", "adamw", "left", 10**400, b"x", {1},
                              object(), print, float("nan"), 0, 1, 0.5, "ref", "running"]))
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(),
                                                                inner, max_size=3),
    max_leaves=4)
