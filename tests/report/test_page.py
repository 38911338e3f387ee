from __future__ import annotations

from acclimate import report


def test_smoke(job, tmp_path):
    runs, oracle = job()
    out = report.write(runs, tmp_path / "report.html", oracle=oracle)
    print(out, out.stat().st_size)
