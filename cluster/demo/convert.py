#!/usr/bin/env python3
"""Turns the CDNOW purchase record into the demo's orders: convert.py CDNOW_master.txt > orders.csv.gz

Each line of the record (customer, date, number of CDs, dollars) becomes one order. Dollars become whole cents by
moving the decimal point in the text, never through a float, so sums stay exact.
"""

import csv
import gzip
import io
import sys


def cents(dollars: str) -> int:
    """'11.77' -> 1177; anything but digits with at most two decimals is an error."""
    whole, _, fraction = dollars.partition(".")
    if not whole.isdigit() or (fraction and not fraction.isdigit()) or len(fraction) > 2:
        raise ValueError(f"not an amount: {dollars!r}")
    return int(whole) * 100 + int((fraction or "0").ljust(2, "0"))


def orders(lines):
    """Yields one order per line, numbered in the order of the record."""
    for number, line in enumerate(lines, start=1):
        customer, day, quantity, dollars = line.split()
        date = f"{day[0:4]}-{day[4:6]}-{day[6:8]}"
        yield [f"ord-{number:06}", f"user-{customer}", date, int(quantity), cents(dollars), "completed"]


def main() -> None:
    with open(sys.argv[1], encoding="ascii") as record:
        next(record)  # the heading
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["order_id", "user_id", "date", "quantity", "amount_cents", "status"])
        table.writerows(orders(record))
    # No name and no time inside, so the same record always gives the same bytes.
    with gzip.GzipFile(fileobj=sys.stdout.buffer, mode="wb", compresslevel=9, mtime=0, filename="") as out:
        out.write(text.getvalue().encode("ascii"))


if __name__ == "__main__":
    main()
