"""What the documentation site shows from beside docs/: the README, and results with plots."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
}
# Links that a page has in the repository, and that lead elsewhere on the site.
LINKS = {
    "](../benchmarks/": "](benchmarks/",
    "](docs/": "](",
    "](../docs/": "](../",
    "](CONTRIBUTING.md": "](contributing.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the plots that are not in docs/."""
    plots = {f"benchmarks/{path.name}": path for path in (ROOT / "benchmarks").glob("*.png")}
    for name, path in {**{k: ROOT / v for k, v in PAGES.items()}, **plots}.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead the links of the repository to the places that the site has."""
    for link, place in LINKS.items():
        markdown = markdown.replace(link, place)
    return markdown
