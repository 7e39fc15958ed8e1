"""The picture of docs/embedding.md: what the code of that page draws."""

import re
from pathlib import Path

page = Path("../embedding.md").read_text(encoding="utf-8")  # Sphinx runs this in its own folder
before_the_picture = page.partition(".. plot::")[0]
code = "\n".join(re.findall(r"^```python\n(.*?)^```", before_the_picture, re.DOTALL | re.MULTILINE))
exec(compile(code, "docs/embedding.md", "exec"), {})
