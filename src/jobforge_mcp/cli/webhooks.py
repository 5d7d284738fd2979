"""``webhooks``: who is told when runs of a tenant end, and who is heard, kept in the database through the admin URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, show
from jobforge_mcp.cli.session import admin_url

if TYPE_CHECKING:
    from jobforge_mcp.types import JsonObject

Name = Annotated[str, typer.Argument(help="Small letters, digits, _ and -.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose runs.")]


def add(
    name: Name,
    url: Annotated[str, typer.Option("--url", help="Where messages go.")],
    secrets: Annotated[
        list[str],
        typer.Option("--secret", help="Name of a worker's secret that signs; again for another."),
    ],
    tenant: Tenant = "local",
    project: Annotated[
        str | None, typer.Option("--project", help="Only runs of this project.")
    ] = None,
    jobs: Annotated[
        list[str] | None, typer.Option("--job", help="Only jobs of this pattern, such as shop.**.")
    ] = None,
    statuses: Annotated[
        list[str] | None,
        typer.Option("--status", help="Only runs that end so: succeeded, failed, dead, canceled."),
    ] = None,
    is_labelled: Annotated[
        bool, typer.Option("--labelled", help="Only runs with the label webhook=NAME.")
    ] = False,
    has_result: Annotated[
        bool, typer.Option("--include-result", help="Send results of up to 32 KiB along.")
    ] = False,
    json: Json = False,
) -> None:
    """Tell a receiver when runs end, or change the webhook of this name."""
    from jobforge_mcp.db.webhooks import set_webhook

    config: JsonObject = {
        "url": url,
        "secrets": [*secrets],
        "scope": "label" if is_labelled else "tenant",
        "includeResult": has_result,
    }
    if jobs:
        config["jobs"] = [*jobs]
    if statuses:
        config["statuses"] = [*statuses]
    is_new = set_webhook(admin_url(), tenant, name, config, project)
    show(
        {"tenant": tenant, "name": name, "isNew": is_new},
        is_json=json,
        people=lambda console: console.print(
            f"tenant {tenant}: webhook {name} {'added' if is_new else 'changed'}", markup=False
        ),
    )


def hear(
    name: Name,
    scheme: Annotated[
        str, typer.Option("--scheme", help="How it signs: standard, github, stripe, shopify.")
    ],
    secrets: Annotated[
        list[str],
        typer.Option("--secret", help="Name of a server's secret that checks; again for another."),
    ],
    tenant: Annotated[str, typer.Option("--tenant", help="Whose events.")] = "local",
    project: Annotated[str | None, typer.Option("--project", help="Project of the events.")] = None,
    redacted: Annotated[
        list[str] | None,
        typer.Option("--redact", help="Field of the body that nobody is shown; again for another."),
    ] = None,
    has_pii: Annotated[
        bool, typer.Option("--pii", help="The bodies hold personal data: show them to nobody.")
    ] = False,
    json: Json = False,
) -> None:
    """Make events of what a sender posts to /hooks/TENANT/NAME, or change the webhook of this name."""
    from jobforge_mcp.db.webhooks import hear_webhook

    config: JsonObject = {"scheme": scheme, "secrets": [*secrets]}
    if has_pii:
        config["containsPii"] = True
    if redacted:
        config["redactFields"] = [*redacted]
    is_new = hear_webhook(admin_url(), tenant, name, config, project)
    show(
        {"tenant": tenant, "name": name, "path": f"/hooks/{tenant}/{name}", "isNew": is_new},
        is_json=json,
        people=lambda console: console.print(
            f"heard at /hooks/{tenant}/{name} ({'new' if is_new else 'changed'})", markup=False
        ),
    )


def list_all(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only those of a tenant.")] = None,
    json: Json = False,
) -> None:
    """Show who is told when runs end, and who is heard."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.db.webhooks import list_webhooks

    found = list_webhooks(admin_url(), tenant)
    show(
        [
            {
                "tenant": one.tenant_id,
                "name": one.name,
                "projectId": one.project_id,
                "config": one.config,
                "setAt": one.set_at.isoformat(),
            }
            for one in found
        ],
        is_json=json,
        people=lambda console: console.print(
            table(
                ("tenant", "webhook", "goes to or is heard at", "what"),
                [
                    (
                        one.tenant_id,
                        one.name,
                        str(one.config.get("url", f"/hooks/{one.tenant_id}/{one.name}")),
                        _runs(one.name, one.config),
                    )
                    for one in found
                ],
            )
        ),
    )


def remove(name: Name, tenant: Tenant = "local", json: Json = False) -> int:
    """Tell and hear nobody of this name any more; what was enqueued is still delivered."""
    from jobforge_mcp.db.webhooks import remove_webhook

    is_removed = remove_webhook(admin_url(), tenant, name)
    text = f"webhook {name} removed" if is_removed else f"there is no webhook {name}"
    show(
        {"isRemoved": is_removed},
        is_json=json,
        people=lambda console: console.print(f"tenant {tenant}: {text}", markup=False),
    )
    return 0 if is_removed else CALLER_EXIT


def _runs(name: str, config: JsonObject) -> str:
    if "scheme" in config:
        return f"{config['scheme']} deliveries"
    words = [
        f"{title} {', '.join(map(str, values))}"
        for title, values in (("job", config.get("jobs")), ("status", config.get("statuses")))
        if isinstance(values, list) and values
    ]
    if config["scope"] == "label":
        words.insert(0, f"label webhook={name}")
    return "; ".join(words) or "all"
