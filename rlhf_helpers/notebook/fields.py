"""A field to type into and a button, where a person sits in front of the notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_helpers.progress import in_live_notebook


def try_it(answer: Callable[[str], Any], text: str, button: str = "Try") -> Any:
    """What `answer(text)` gives; in a live notebook with a field and a button for other texts.

    `answer` takes what stands in the field and returns anything that a cell can show. Under
    papermill, nbval and in scripts there is nobody to press a button: the plain answer is returned.
    """
    if not in_live_notebook():
        return _shown(answer(text))
    import ipywidgets as widgets
    from IPython.display import display

    field = widgets.Text(value=text, layout=widgets.Layout(width="75%"))
    press = widgets.Button(description=button)
    place = widgets.Output()

    def show(_=None) -> None:
        place.clear_output(wait=True)
        with place:  # an error is shown there as well, and the field stays
            result = _shown(answer(field.value))
            if result is not None:
                display(result)

    press.on_click(show)
    show()
    return widgets.VBox([widgets.HBox([field, press]), place])


def _shown(result: Any) -> Any:
    """Text is printed, so that no quotation marks stand round it; the rest is left to the cell."""
    if not isinstance(result, str):
        return result
    print(result)
    return None
