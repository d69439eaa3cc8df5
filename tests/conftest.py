"""For all tests."""

from hypothesis import settings

# A loaded machine is slow now and then; what is tested is what comes out.
settings.register_profile("agentlightning", deadline=None)
settings.load_profile("agentlightning")
