"""Examples of hypothesis take their time: on a busy machine any may take long, and so may the making of it.

Not in tests/conftest: guests load that too, and have no time for it. Imported for what it does.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
