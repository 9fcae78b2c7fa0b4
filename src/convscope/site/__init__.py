"""The offline report: pages and notebook views. It knows how to draw and computes nothing.

    write(out, atlas=manifest, looks=[...])     -> OUT/index.html and the pages it leads to
    paced(out)                                  -> a function to call after every chunk of a running atlas
    write_layers(out, layers)                   -> the data of the page of layers, without the pages
    write_changes(out, changes)                 -> the data of the page of changes, likewise
    notebook.html(thing)                        -> one self-contained HTML fragment

A later issue adds a page by calling `register(Page(...))` and shipping its template and script.
"""

from __future__ import annotations

from convscope.site.build import paced, write
from convscope.site.changes import write_changes
from convscope.site.layers import write_layers
from convscope.site.pages import Contents, Page, register

__all__ = ["Contents", "Page", "paced", "register", "write", "write_changes", "write_layers"]
