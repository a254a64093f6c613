"""DCGM's fields: name, type, our reading, and scale."""

MIB = 2**20


# DCGM name, help, column of GpuSample, what one unit of the column is in DCGM's unit
FIELDS: tuple[tuple[str, str, str, float], ...] = (
    ("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", "sm_clock_mhz", 1),
    ("DCGM_FI_DEV_MEM_CLOCK", "Memory clock frequency (in MHz).", "mem_clock_mhz", 1),
    ("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", "temp_c", 1),
    ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", "power_avg_w", 1),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "Energy since the driver was loaded (in mJ).",
        "energy_mj",
        1,
    ),
    ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", "util_pct", 1),
    ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", "mem_used_bytes", 1 / MIB),
    ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "Clock event bit mask.", "throttle_reasons", 1),
)
