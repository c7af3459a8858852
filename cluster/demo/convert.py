#!/usr/bin/env python3
"""Turns the CDNOW purchase record into the demo's orders: convert.py CDNOW_master.txt > orders.jsonl.gz

Each line of the record (customer, date, number of CDs, dollars) becomes one order, as the service of orders keeps them.
Dollars are checked and written as text, never through a float, so sums stay exact.
"""

import datetime
import gzip
import sys


def amount(dollars: str) -> str:
    """'11.7' -> '11.70'; anything but digits with at most two decimals is an error."""
    whole, _, fraction = dollars.partition(".")
    if not whole.isdigit() or (fraction and not fraction.isdigit()) or len(fraction) > 2:
        raise ValueError(f"not an amount: {dollars!r}")
    return f"{int(whole)}.{(fraction or '0').ljust(2, '0')}"


def milliseconds(day: str) -> int:
    """'19970101' -> the beginning of that day, UTC, in milliseconds since 1970."""
    moment = datetime.datetime(int(day[0:4]), int(day[4:6]), int(day[6:8]), tzinfo=datetime.timezone.utc)
    return int(moment.timestamp()) * 1000


def orders(lines):
    """Yields one order per line, numbered in the order of the record."""
    for number, line in enumerate(lines, start=1):
        customer, day, quantity, dollars = line.split()
        at = milliseconds(day)
        yield (
            f'{{"order_id":"ord-{number:06}","business_key":"cdnow-{number:06}","user_id":"user-{customer}",'
            f'"status":"completed","amount":{amount(dollars)},'
            f'"items":[{{"product_id":"cd","quantity":{int(quantity)}}}],"created_ms":{at},"updated_ms":{at}}}\n'
        )


def main() -> None:
    with open(sys.argv[1], encoding="ascii") as record:
        next(record)  # the heading
        text = "".join(orders(record))
    # No name and no time inside, so the same record always gives the same bytes.
    with gzip.GzipFile(fileobj=sys.stdout.buffer, mode="wb", compresslevel=9, mtime=0, filename="") as out:
        out.write(text.encode("ascii"))


if __name__ == "__main__":
    main()
