"""`rerank-service traffic`: shows and changes the shares of canaries and shadows while the service runs."""

import json
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Column, Table
from rich.text import Text

from rerank_service.tools.cli.console import fail, say, stdout

if TYPE_CHECKING:
    from rerank_service.config import VersionConfig
    from rerank_service.routing.traffic_store import StoredTraffic
    from rerank_service.tools.deployment.traffic_shares import Change

__all__ = ["traffic"]

Name = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", show_default=False, help="Id of a version; with --rollback also of a model."),
]
TrafficPercent = Annotated[
    float | None,
    typer.Option("--percent", metavar="PERCENT", min=0, max=100, help="Share of requests that the version answers."),
]
ShadowPercent = Annotated[
    float | None,
    typer.Option(metavar="PERCENT", min=0, max=100, help="Share of requests that the version scores as a shadow."),
]
Rollback = Annotated[
    bool, typer.Option("--rollback", help="Let models answer all their requests again; by default, all models.")
]


def traffic(
    model: Name = None,
    traffic_percent: TrafficPercent = None,
    shadow_percent: ShadowPercent = None,
    rollback: Rollback = False,
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="The cluster's address; auto: the cluster of this machine.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the shares as JSON.")] = False,
) -> None:
    """Show or change the share of requests that versions of a model receive.

    A change takes effect within two seconds, and no process restarts. It
    lasts until a deployed configuration file has other shares than before.
    """
    wanted = _Wanted(model, traffic_percent, shadow_percent, rollback)
    wanted.check()
    from rerank_service.routing.traffic_store import TrafficStore  # Ray takes a second to import
    from rerank_service.tools.deployment import node_drain, traffic_shares

    changes: list[Change] = []
    try:
        cluster = node_drain.Cluster(address)
        store = TrafficStore(cluster.address)
        stored = traffic_shares.running_traffic(cluster, store)
        if rollback:
            changes = traffic_shares.rolled_back(stored, model)
        elif wanted.is_share:
            changes = traffic_shares.changed(stored, str(model), traffic_percent, shadow_percent)
    except (ConnectionError, ValueError) as error:
        raise fail(str(error)) from None
    for application, one in stored.items():
        if shares := {change.version: change.after for change in changes if change.application == application}:
            stored[application] = one.model_copy(update={"current": one.current | shares})
            store.write(application, stored[application])
    if as_json:
        _print_json(stored)
    elif rollback or wanted.is_share:
        _print_changes(changes)
    else:
        _print_table(stored)


class _Wanted(NamedTuple):
    """What the command line asks for."""

    model: str | None
    traffic_percent: float | None
    shadow_percent: float | None
    is_rollback: bool

    @property
    def is_share(self) -> bool:
        return self.traffic_percent is not None or self.shadow_percent is not None

    def check(self) -> None:
        """Ends the program if the options contradict each other."""
        if (self.traffic_percent is not None) + (self.shadow_percent is not None) + self.is_rollback > 1:
            raise fail("give only one of --percent, --shadow-percent and --rollback")
        if self.is_share and self.model is None:
            raise fail("which version? `rerank-service traffic` lists them")
        if self.model is not None and not self.is_share and not self.is_rollback:
            raise fail(f"what should {self.model} receive? Give --percent, --shadow-percent or --rollback")


def _print_json(stored: "dict[str, StoredTraffic]") -> None:
    entries = [
        {
            "application": application,
            "version": name,
            **share.model_dump(),
            "configured": one.configured[name].model_dump(),
        }
        for application, one in stored.items()
        for name, share in one.current.items()
    ]
    typer.echo(json.dumps({"versions": entries}))


def _print_changes(changes: "list[Change]") -> None:
    for _, version, before, after in changes:
        say(f"{version} {_words(after)} of the requests for {after.of} (before: {_words(before)})")
    say("ingresses apply this within two seconds" if changes else "no version answers requests; nothing has changed")


def _print_table(stored: "dict[str, StoredTraffic]") -> None:
    if not stored:
        say("no running application has versions; models[].version in a configuration file declares them")
        return
    titles = ("version", "of", "application")[: 2 + (len(stored) > 1)]
    names = [Column(title, overflow="fold") for title in titles]
    shares = [Column(name, no_wrap=True) for name in ("share", "in the file")]
    table = Table(*names, *shares, box=None, pad_edge=False)
    for application, one in stored.items():
        for name, share in one.current.items():
            row = map(Text, (name, share.of, application)[: len(titles)])
            table.add_row(*row, _words(share), _words(one.configured[name]))
    stdout.print(table)


def _words(share: "VersionConfig") -> str:
    if share.shadow_percent:
        return f"shadows {share.shadow_percent:g}%"
    return f"answers {share.traffic_percent:g}%"
