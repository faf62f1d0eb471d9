"""Bokeh document that many pages use, with other values on each page."""

from collections.abc import Mapping
from typing import Any

from bokeh.core.serialization import Serializer
from bokeh.document import Document
from bokeh.embed.bundle import bundle_for_objs_and_resources
from bokeh.embed.elements import html_page_for_render_items
from bokeh.embed.util import standalone_docs_json_and_render_items
from bokeh.model import Model
from bokeh.models import CustomJS
from bokeh.resources import Resources
from jinja2 import Template


class PageDocument:
    """Bokeh document, serialized once. Values are replaced in the JSON.

    Building and serializing a document takes most of the time of a page. All pages share the
    values, so pages are made one after the other.
    """

    def __init__(self, document: Document, resources: Resources) -> None:
        """Serialize ``document``; ``resources`` is the code of bokeh that a page contains."""
        self._json, self._items = standalone_docs_json_and_render_items(
            document,
            suppress_callback_warning=True,  # skip a slow check of callbacks in Python
        )
        self._bundle = bundle_for_objs_and_resources([document], resources)
        self._attributes: dict[str, dict[str, Any]] = {}  # of each model, by its id
        self._find_models(self._json)

    def _find_models(self, value: Any) -> None:
        if isinstance(value, dict):
            if value.get("type") == "object" and "id" in value:
                self._attributes[value["id"]] = value.setdefault("attributes", {})
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for part in value:
                self._find_models(part)

    def set_values(self, model: Model, **values: Any) -> None:
        """Replace attributes of a model. The values, old and new, contain no other model."""
        self._attributes[model.id] |= {name: _encode(value) for name, value in values.items()}

    def set_arguments(self, callback: CustomJS, **values: Any) -> None:
        """Replace arguments of a callback. The values, old and new, contain no model."""
        arguments = self._attributes[callback.id]["args"]  # {"type": "map", "entries": pairs}
        new = {name: _encode(value) for name, value in values.items()}
        arguments["entries"] = list((dict(arguments["entries"]) | new).items())

    def render(self, template: Template, title: str, variables: Mapping[str, Any]) -> str:
        """Return the HTML of a page with the present values."""
        return html_page_for_render_items(
            *(self._bundle, self._json, self._items, title),
            template=template,
            template_variables=dict(variables),
        )


def _encode(value: Any) -> Any:
    return Serializer(deferred=False).encode(value)
