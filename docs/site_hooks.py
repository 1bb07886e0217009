"""Turns the pages, as they lie in the repository, into a site. mkdocs calls these functions (mkdocs.yml names them).

The pages above docs/ become pages of the site. A link that leaves docs/ leads to such a page, to a picture, which is
copied, or to the repository; without an address of the repository its text stays. A Mermaid diagram becomes a picture
while the site is built, because a browser would fetch Mermaid from another host.
"""

import importlib.metadata
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {path.name: path.name.lower() for path in ROOT.glob("*.md")} | {"README.md": "index.md"}
"""Pages above docs/, and what they are called on the site."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.repo_url = _address()
    config.repo_name = None if config.repo_url is None else config.site_name
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, uri in ABOVE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        uri = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    in_repository = next((name for name, ours in ABOVE.items() if ours == uri), f"docs/{uri}")

    def followed(link: re.Match[str]) -> str:
        shown, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if not target:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), target))
        inside = ABOVE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(inside) is not None:
            return f"{shown}[{text}]({posixpath.relpath(inside, posixpath.dirname(uri) or '.')}{anchor})"
        address = _address()
        return text if address is None else f"{shown}[{text}]({address}/blob/main/{path}{anchor})"

    def drawn(fence: re.Match[str]) -> str:
        import mermaidx

        picture = f"{Path(uri).stem}-{fence.start()}.svg"
        files.append(File.generated(config, picture, content=mermaidx.render(fence[1]).svg()))
        return f"![The diagram, described in the text around it]({picture})"

    return _MERMAID.sub(drawn, _LINK.sub(followed, markdown))


def _address() -> str | None:
    """The repository's, from `[project.urls]` in pyproject.toml; None while it is not filled in."""
    urls = importlib.metadata.metadata("ulsam_fused").get_all("Project-URL") or []
    return next((url.partition(", ")[2] for url in urls if url.startswith("Source, ")), None)
