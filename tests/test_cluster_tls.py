"""`--scheduler local` and `slurm` over TLS, as a hospital's Dask configuration asks for it, without a cluster.

Slurm is a stand-in that runs a job's script on this machine, so that what is tested is the script itself.
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from voxring.batch import party_totals
from voxring.study import Study

STUDY = Study.of(name="test", classes={"a": 1}, window={"size": 3})

RUN = """
import json, sys
import distributed
from voxring import Study
from voxring.batch import party_batch

addresses = []

class Seen(distributed.Client):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        addresses.append(self.scheduler.address)
        addresses.extend(self.scheduler_info()["workers"])

if __name__ == "__main__":
    distributed.Client = Seen
    study = Study.of(name="test", classes={"a": 1}, window={"size": 3})
    batch = party_batch("m.csv", study, scheduler=sys.argv[1], workers=int(sys.argv[2]))
    print(json.dumps([batch.images, batch.totals["a"].sum, addresses]))
"""
SBATCH = """#!/bin/sh
cp "$1" "$SLURM_STANDIN/job.$$"
setsid sh "$SLURM_STANDIN/job.$$" >"$SLURM_STANDIN/out.$$" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
for job; do kill -- "-$job"; done
"""


@pytest.fixture
def hospital(tmp_path):
    """Three images, a certificate of the hospital's own, and Dask's configuration, which asks for encryption."""
    rng = np.random.default_rng(3)
    for i in range(3):
        np.save(tmp_path / f"i{i}.npy", rng.integers(-9, 9, (4, 9, 9)).astype(np.int16))
        np.save(tmp_path / f"g{i}.npy", rng.integers(0, 2, (4, 9, 9)).astype(np.uint8))
    (tmp_path / "m.csv").write_text("image,ground_truth\n" + "".join(f"i{i}.npy,g{i}.npy\n" for i in range(3)))
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "h")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    both = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    tls = {"ca-file": both["cert"], "scheduler": both, "worker": both, "client": both}
    slurm = {"cores": 2, "processes": 2, "memory": "4GB", "walltime": "00:10:00", "interface": "lo"}
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask/hospital.yaml").write_text(  # JSON is YAML
        json.dumps(
            {
                "distributed": {"comm": {"require-encryption": True, "tls": tls}},
                "jobqueue": {
                    "slurm": {**slurm, "scheduler-options": {"protocol": "tls://", "dashboard_address": None}}
                },
            }
        )
    )
    return tmp_path


def run(folder, scheduler, workers):
    (folder / "run.py").write_text(RUN)
    (folder / "bin").mkdir()
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    environment = {
        **os.environ,
        "DASK_CONFIG": str(folder / "dask"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_STANDIN": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, folder / "run.py", scheduler, str(workers)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    said = "".join(path.read_text() for path in Path(folder).glob("out.*"))
    assert done.returncode == 0, done.stderr + said
    images, total, addresses = json.loads(done.stdout.splitlines()[-1])
    assert (images, total) == (3, party_totals(folder / "m.csv", STUDY)["a"].sum)
    assert all(address.startswith("tls://") for address in addresses)
    return addresses


@pytest.mark.soak
def test_workers_on_this_machine_are_reached_over_tls(hospital):
    assert len(run(hospital, "local", 1)) == 2


@pytest.mark.soak
def test_slurm_jobs_compute_the_same_over_tls(hospital):
    run(hospital, "slurm", 2)
    jobs = [path.read_text() for path in hospital.glob("job.*")]
    assert len(jobs) == 2  # as many as --workers, whatever a job's processes
    for job in jobs:
        assert "#SBATCH --cpus-per-task=2" in job
        assert "distributed.cli.dask_worker tls://" in job
        assert "--nworkers 2" in job
