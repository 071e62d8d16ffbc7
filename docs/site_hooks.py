"""Build-time check of the site: no page loads a script, a style, a font or an image from another host."""

from __future__ import annotations

import re

from mkdocs.exceptions import PluginError

LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*?\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link[^>]*?\srel=["']?(?:stylesheet|preconnect|preload|icon)[^>]*?\shref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link[^>]*?\shref=["']?(?:https?:)?//[^"'\s>]+[^>]*?\srel=["']?(?:stylesheet|preconnect|preload|icon)"""
    r"""|url\(["']?(?:https?:)?//[^)]+"""
)


def on_post_page(output: str, page: object, config: object) -> str:
    """Refuse a page that would load something from elsewhere."""
    if found := LOADED.search(output):
        raise PluginError(f"{page} loads from another host: {found.group()}")
    return output
