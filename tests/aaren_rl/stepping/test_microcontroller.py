"""The exported C on an emulated Cortex-M4: gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm of Debian."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from small_steps import build, play_in_torch, rows_of

from aaren_rl.stepping.c.code import generate
from aaren_rl.stepping.c.operations import literal
from aaren_rl.stepping.model_stepper import ModelStepper

TOOLS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
FLAGS = [
    "-mcpu=cortex-m4",
    "-mthumb",
    "-mfloat-abi=hard",
    "-mfpu=fpv4-sp-d16",
    "-std=c99",
    "-O2",
    "-ffunction-sections",
]
LINK = """
ENTRY(start)
MEMORY { code (rx) : ORIGIN = 0x00000000, LENGTH = 4M
         data (rw) : ORIGIN = 0x20000000, LENGTH = 4M }
SECTIONS {
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) *(.ARM.ex*) } > code
    .data : { *(.data*) } > data AT > code
    .bss : { bss_start = .; *(.bss*) *(COMMON) bss_end = .; } > data
    end = .;
}
"""
BOARD = """
#include <stdint.h>
#include <stdio.h>
#include "agent.h"

static const float rows[][AGENT_OBSERVATION + 1] = {%s};
#define ROWS (int)(sizeof rows / sizeof rows[0])
static agent_state state;

/* Semihosting: the emulator prints what the board writes. */
static void say(const char *text)
{
    register int call __asm__("r0") = 4;
    register const char *what __asm__("r1") = text;
    __asm__ volatile("bkpt 0xab" : "+r"(call) : "r"(what) : "memory");
}

static void hexadecimal(uint32_t number)
{
    char text[10];
    for (int i = 0; i < 8; ++i)
        text[i] = "0123456789abcdef"[number >> (28 - 4 * i) & 15];
    text[8] = '\\n';
    text[9] = 0;
    say(text);
}

void start(void)
{
    extern uint32_t bss_start, bss_end;
    for (uint32_t *word = &bss_start; word < &bss_end; ++word)
        *word = 0;
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; /* the floating-point unit */
    __asm__ volatile("dsb\\n isb");
    volatile uint32_t *systick = (volatile uint32_t *)0xE000E010;
    systick[1] = 0xFFFFFF;
    systick[2] = 0;
    systick[0] = 5;
    agent_reset(&state, %sf);
    uint32_t before = systick[2];
    float action[ROWS][AGENT_ACTION];
    for (int row = 0; row < ROWS; ++row)
        agent_step(&state, rows[row] + 1, rows[row][0], action[row]);
    hexadecimal((before - systick[2]) & 0xFFFFFF);
    for (int row = 0; row < ROWS; ++row)
        for (int i = 0; i < AGENT_ACTION; ++i) {
            union { float number; uint32_t bits; } both = {action[row][i]};
            hexadecimal(both.bits);
        }
    register int call __asm__("r0") = 0x18;
    register int reason __asm__("r1") = 0x20026;
    __asm__ volatile("bkpt 0xab" : "+r"(call) : "r"(reason));
}

__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = {
    (void (*)(void))0x20400000, start};
"""
TICK = 40
"""Instructions in a tick of the board's clock, where an instruction takes a nanosecond."""


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("mixer", ["aaren", "gated-aaren", "local:4"])
def test_the_board_acts_as_torch_does(mixer, int8, tmp_path, record_property):
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    step, rows = ModelStepper(build(mixer=mixer, width=64, blocks=3)), rows_of(12)
    code = generate(step, "a test", int8)
    (tmp_path / "agent.h").write_text(code.header)
    (tmp_path / "agent.c").write_text(code.source)
    (tmp_path / "board.ld").write_text(LINK)
    written = ", ".join("{" + ", ".join(literal(float(number), "float") for number in row) + "}" for row in rows)
    (tmp_path / "board.c").write_text(BOARD % (written, "90.0"))
    out = tmp_path / "board.elf"
    command = ["arm-none-eabi-gcc", *FLAGS, "-nostartfiles", "-T", "board.ld", "-Wl,--gc-sections", "-o", str(out)]
    said = subprocess.run(
        [*command, "board.c", "agent.c", "-lm"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    emulator = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-icount", "shift=0", "-semihosting"]
    ran = subprocess.run([*emulator, "-kernel", str(out)], capture_output=True, text=True, timeout=300, check=False)
    numbers = [int(line, 16) for line in (ran.stdout + ran.stderr).split() if re.fullmatch("[0-9a-f]{8}", line)]
    actions = np.array(numbers[1:], np.uint32).view(np.float32).reshape(len(rows), -1)
    exact = play_in_torch(step, rows, 90.0)
    np.testing.assert_allclose(actions, exact, rtol=0, atol=0.2 if int8 else 1e-5)
    sizes = subprocess.run(["arm-none-eabi-size", str(out)], capture_output=True, text=True, check=True).stdout
    flash, _, ram = map(int, sizes.splitlines()[1].split()[:3])
    instructions = numbers[0] * TICK / len(rows)
    for name, value in {
        "flash": flash,
        "ram": ram,
        "scratch": code.scratch_bytes,
        "instructions": instructions,
    }.items():
        record_property(name, value)
    print(mixer, int8, "flash", flash, "ram", ram, "scratch", code.scratch_bytes, "instructions", instructions)
    assert code.weight_bytes < flash < code.weight_bytes + 64 * 1024
