"""Whoever reaches a scheduler runs code as its owner: workers on this machine answer to those with certificates."""

import asyncio
import datetime
import sys
from pathlib import Path

import dask.config
import distributed
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed.comm import connect

from meal_gpu.errors import InputError
from meal_gpu.sharding import cluster


def double(value: int) -> int:
    return 2 * value


async def greet(address: str, given: dict[str, object]) -> None:
    """What a client does first."""
    comm = await connect(address, timeout=2, **given)
    await comm.close()


def test_a_client_without_the_certificate_is_turned_away():
    with cluster.local(1, 1) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.submit(double, 21).result() == 42
        assert all(worker.startswith("tls://127.0.0.1:") for worker in client.scheduler_info()["workers"])
        own = client.security.get_connection_args("client")
        asyncio.run(greet(address, own))
        somebodys = distributed.Security.temporary().get_connection_args("client")
        for place, given in ((address, {}), (address.replace("tls://", "tcp://"), {}), (address, somebodys)):
            with pytest.raises((OSError, TypeError)):
                asyncio.run(greet(place, given))
        assert client.submit(double, 4).result() == 8


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """Dask's settings for files such as an owner hands out: a certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meal-gpu test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
                   .serial_number(1).not_valid_before(now - datetime.timedelta(1))
                   .not_valid_after(now + datetime.timedelta(1)).sign(key, hashes.SHA256()))
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    part = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    return {"ca-file": part["cert"], **{f"{who}.{name}": file for who in ("client", "worker", "scheduler")
                                        for name, file in part.items()}}


def test_a_scheduler_of_ones_own_with_certificates(certificates):
    """`--scheduler tls://…` takes the files that Dask's settings name, and says which are missing."""
    settings = {f"distributed.comm.tls.{key}": file for key, file in certificates.items()}
    with dask.config.set(settings):
        secure = distributed.Security(require_encryption=True)
        with distributed.LocalCluster(n_workers=1, processes=False, protocol="tls", security=secure,
                                      threads_per_worker=1, dashboard_address=None) as there:
            with cluster.connected(there.scheduler_address) as client:
                assert client.submit(double, 3).result() == 6
            with dask.config.set({"distributed.comm.tls.client.cert": None}), pytest.raises(
                    InputError, match=r"^tls://.*Set DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT to the files"), \
                    cluster.connected(there.scheduler_address):
                pass


def test_without_cryptography_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(InputError, match=r"cryptography is not installed.*pip install 'meal-gpu\[dask\]'"), \
            cluster.local(1, 1):
        pass
