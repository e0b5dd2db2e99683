"""``crad serve``: score images that come over HTTP, and show them in a page."""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from crad.command_line import DetectorOptions, InferenceOptions, make_command
from crad.errors import MissingPackageError, UsageError
from crad.scoring.calibration import promise


@dataclass(frozen=True)
class ServeOptions:
    """What the server takes."""

    checkpoint: Path
    """A checkpoint, the output folder of a training run, or a file of crad export."""
    host: str = "127.0.0.1"
    """Address to listen on. By default, only this machine reaches it."""
    port: int = 8000
    """Port to listen on; 0 takes any that is free."""
    token_file: Path | None = None
    """A file with the token that clients must send. Default: the environment variable
    CRAD_TOKEN, else no token."""
    queue: int = 64
    """Images that are received, wait, or are computed at most; more are refused with 503."""
    max_megabytes: float = 32.0
    """Largest size of a file, in MB."""
    detector: DetectorOptions = field(default_factory=DetectorOptions)
    compute: InferenceOptions = field(default_factory=InferenceOptions)

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            UsageError: it is.
        """
        self.compute.check()
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port: expected 0 to 65535, but got {self.port}")
        if self.queue < 1:
            raise UsageError(f"--queue: expected at least 1, but got {self.queue}")
        if not 0 < self.max_megabytes < math.inf:
            raise UsageError(
                f"--max-megabytes: expected a number above 0, but got {self.max_megabytes}"
            )


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C, and answer what was accepted before.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DeviceError: the device is not there.
        MissingPackageError: the packages of the server are not installed.
        UsageError: an option is out of range, or the port is taken.
    """
    options.check()
    try:
        from crad.serving.access import read_token
        from crad.serving.app import Service
        from crad.serving.log import log_lines
        from crad.serving.server import Server, address_of, bind, is_loopback
    except ImportError as error:
        raise MissingPackageError(
            f"serve: {error.name} is not installed; install it with pip install 'crad[serve]'"
        ) from error
    token = read_token(options.token_file)
    with bind(options.host, options.port) as bound:
        detector = options.compute.load(options.checkpoint, options.detector.choices())
        log_lines()
        if not detector.thresholds:
            print("no decisions: the checkpoint has no thresholds; crad calibrate sets some")
        numbers = [each.n_images for each in detector.thresholds.values()]
        if note := promise(numbers, detector.false_alarm_rate):
            print(note)
        if token is None and not is_loopback(bound):
            print(
                "warning: whoever reaches this address can use the server; --token-file asks "
                "clients for a token",
                file=sys.stderr,
            )
        service = Service(
            detector,
            batch_size=options.compute.batch_size,
            queue=options.queue,
            max_bytes=int(options.max_megabytes * 1e6),
            token=token,
        )
        told = f"serving {options.checkpoint} at {address_of(bound)}"
        Server(service.app, lambda: print(told, flush=True)).run([bound])
    service.worker.close()
    print("stopped; all that was accepted is answered")


main = make_command(
    ServeOptions, serve, "serve", "Score images that come over HTTP, and show them in a page."
)

if __name__ == "__main__":
    main()
