"""What the root holds: releases, the alias log, runs with their plans and units."""
