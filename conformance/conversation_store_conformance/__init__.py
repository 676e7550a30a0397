"""Rules that every store of conversations should keep, and the means to check a store against them.

from conversation_store_conformance import Store, check

report = await check(open_store)          # a function that opens the store: open_store(place)
print(report.as_text())
"""

from conversation_store_conformance.report import Report, as_table
from conversation_store_conformance.runner import Outcome, check
from conversation_store_conformance.store import CAPABILITIES, Item, OpenStore, Store, capabilities_of

__all__ = ["CAPABILITIES", "Item", "OpenStore", "Outcome", "Report", "Store", "as_table", "capabilities_of", "check"]
