import psycopg

from jobforge_mcp.client import Options, SyncClient
from jobforge_mcp.types import JsonValue


def place_order(client: SyncClient, connection: psycopg.Connection, order: int) -> JsonValue:
    with connection.transaction():
        connection.execute("insert into orders (id) values (%s)", [order])
        enqueued = client.enqueue(
            "shop.receipt",
            {"order": order},
            Options(idempotency_key=f"receipt-{order}"),
            connection=connection,
        )
    # Committed: the order and its job exist, or neither does. Waiting is optional.
    return client.result(enqueued.job_id, timeout_seconds=30)


def main(url: str) -> JsonValue:
    with SyncClient.connect() as client, psycopg.connect(url, autocommit=True) as connection:
        return place_order(client, connection, 43)
