from pydantic import BaseModel, Field

from jobforge_mcp import JobContext, PermanentError, Retry, job


class ReceiptInput(BaseModel):
    order: int = Field(ge=1, description="Number of the order.")


class ReceiptOutput(BaseModel):
    order: int
    lines: int


@job(name="shop.receipt", timeout="1m", retry=Retry(max_attempts=5, backoff="2s"))
async def receipt(input: ReceiptInput, job: JobContext) -> ReceiptOutput:
    """Write the receipt of an order. Returns how many lines it has."""
    if input.order == 13:
        raise PermanentError("order 13 has no lines", code="EMPTY_ORDER")
    for line in range(3):
        job.progress(line, 3, f"line {line + 1}")
    job.log(f"receipt of order {input.order} written")
    return ReceiptOutput(order=input.order, lines=3)
