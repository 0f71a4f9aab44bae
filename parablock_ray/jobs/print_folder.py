"""Runs in the cluster, where its text is sent as it stands (nothing is imported but Python's own): a run folder as one
line of JSON on stdout.

Small files first, as long as they fit; what does not is named. So the weights of a large model stay there, and
everything that tells about the run comes.
"""

import base64
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path


def packed(folder: Path, max_bytes: int) -> dict:
    """`run_folder`: a zip in base64, None where there is no folder; its `sha256`; the paths `left_behind`."""
    if not folder.is_dir():
        return {"run_folder": None}
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    archive, num_bytes, left_behind = io.BytesIO(), 0, []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(files, key=lambda file: (file.stat().st_size, file)):
            num_bytes += file.stat().st_size
            if num_bytes <= max_bytes:
                zipped.write(file, file.relative_to(folder))
            else:
                left_behind.append(str(file.relative_to(folder)))
    content = archive.getvalue()
    return {
        "run_folder": base64.b64encode(content).decode(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "left_behind": left_behind,
    }


if __name__ == "__main__":
    print(json.dumps(packed(Path(sys.argv[1]).expanduser(), int(sys.argv[2]))))
