"""The folder recorded/rlds was written by tensorflow-datasets 4.9.10 with TensorFlow 2.21.

`expected.npz` holds what `as_dataset` gave of it, step by step: two episodes of the split train, one of val.
"""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from aaren_rl.envs.readers import tfrecord
from aaren_rl.envs.readers.crc32c import crc32c, masked
from aaren_rl.envs.readers.parsed import recording
from aaren_rl.envs.readers.rlds import parse
from aaren_rl.errors import DataError, InvalidInput

RECORDED = Path(__file__).parent / "recorded" / "rlds"
SHARD = "tiny-train.tfrecord-00000-of-00001"
PARTS = ("image", "depth", "state", "counts", "raw", "d")


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(RECORDED / "1.0.0", tmp_path / "tiny" / "1.0.0"))


@pytest.mark.parametrize(("split", "count"), [("train", 2), ("val", 1)])
def test_every_value_is_as_tensorflow_reads_it(split, count):
    episodes = parse(RECORDED / "1.0.0", lambda line: None, split).episodes
    assert len(episodes) == count
    with np.load(RECORDED / "expected.npz") as expected:
        for number, episode in enumerate(episodes):
            for key in PARTS:
                values = expected[f"{split}/{number}/{key}"]
                np.testing.assert_array_equal(episode.observations[key], values)
                assert episode.observations[key].dtype == values.dtype
            instructions = expected[f"{split}/{number}/language_instruction"].tolist()
            assert episode.observations["language_instruction"] == instructions
            np.testing.assert_array_equal(episode.actions, expected[f"{split}/{number}/action"][:-1])
            np.testing.assert_array_equal(episode.rewards, expected[f"{split}/{number}/reward"][:-1])
            assert episode.terminated == expected[f"{split}/{number}/is_terminal"][-1]


def test_folder_above_and_single_file_mean_the_same(folder):
    said = []
    by_folder = parse(folder.parent, said.append)
    assert said[0] == f"data: {folder}: read the split train; left out val"
    by_file = parse(folder / SHARD, lambda line: None)
    for one, other in zip(by_folder.episodes, by_file.episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_last_observation_is_the_final_one():
    found = recording(parse(RECORDED / "1.0.0", lambda line: None), "data").trajectories
    with np.load(RECORDED / "expected.npz") as expected:
        np.testing.assert_array_equal(found.final_observations["image"][0], expected["train/0/image"][-1])
        np.testing.assert_array_equal(found.observations["image"][:2], expected["train/0/image"][:-1])


def test_checksums_are_those_of_the_standard():
    # RFC 3720, appendix B.4.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([255] * 32)) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_checksum_of_any_length_is_that_of_a_loop():
    def by_bit(content):
        value = 0xFFFFFFFF
        for byte in content:
            value ^= byte
            for _ in range(8):
                value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        return value ^ 0xFFFFFFFF

    content = np.random.default_rng(0).bytes(1_500)
    for length in (*range(140), 255, 256, 257, 1_023, 1_024, 1_500):
        assert crc32c(content[:length]) == by_bit(content[:length]), length


def test_negative_and_large_whole_numbers():
    numbers = [0, 1, -1, 127, 128, 2**31, -(2**63), 2**63 - 1]
    packed = b"".join(varint(number % 2**64) for number in numbers)
    for values in (field(1, packed), b"".join(varint(1 << 3) + varint(number % 2**64) for number in numbers)):
        message = field(1, field(1, field(1, b"x") + field(2, field(3, values))))
        assert tfrecord.example(message, "a")["x"].tolist() == numbers


def varint(number):
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def record(content):
    head = struct.pack("<Q", len(content))
    return head + struct.pack("<I", masked(head)) + content + struct.pack("<I", masked(content))


@pytest.mark.parametrize("position", range(0, 4_500, 97))
def test_altered_byte_is_noticed(folder, position):
    content = bytearray((folder / SHARD).read_bytes())
    content[position] ^= 0x10
    (folder / SHARD).write_bytes(bytes(content))
    with pytest.raises(DataError, match="checksum|cut off"):
        parse(folder, lambda line: None)


@pytest.mark.parametrize("kept", [5, 100, 2_000, -1, -4])
def test_cut_file_is_named_as_cut(folder, kept):
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{SHARD} .* is cut off in record"):
        parse(folder, lambda line: None)


def test_cut_between_two_records_is_noticed(folder):
    first = next(tfrecord.records(folder / SHARD))
    (folder / SHARD).write_bytes(record(first))
    with pytest.raises(DataError, match=rf"{SHARD} holds 1 episodes; dataset_info.json lists 2"):
        parse(folder, lambda line: None)


def edited(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def steps_of(content):
    return content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]


def renamed(content):
    steps_of(content)["observation"]["featuresDict"]["features"]["pose"] = steps_of(content)["observation"][
        "featuresDict"
    ]["features"].pop("state")


def shaped(content):
    steps_of(content)["action"]["tensor"]["shape"] = {"dimensions": ["3"]}


def imaged(content):
    part = steps_of(content)["observation"]["featuresDict"]["features"]["image"]
    part["image"]["shape"] = {"dimensions": ["9", "10", "3"]}


def texted(content):
    steps_of(content)["action"] = {"text": {}}


def unlisted(content):
    del steps_of(content)["action"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "episode 0: observation/pose is missing, which features.json lists"),
        (shaped, r"episode 0: action hold 6 numbers in 3 steps; expected the shape \(3,\) for each"),
        (imaged, r"episode 0: observation/image are images of \(8, 10, 3\); features.json lists \(9, 10, 3\)"),
        (texted, "episode 0: action hold numbers for 3 steps; expected one text for each"),
        (unlisted, "features.json lists no steps with observation and action"),
        (lambda content: content["featuresDict"].pop("features"), "describes no steps as RLDS does"),
    ],
)
def test_features_that_do_not_fit_name_file_and_episode(folder, change, message):
    edited(folder / "features.json", change)
    with pytest.raises(DataError, match=message):
        parse(folder, lambda line: None)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"tensor": {"dtype": "float32", "encoding": "zlib", "shape": {}}}, "action is stored as zlib"),
        ({"pythonClassName": "a.b.Video", "video": {}}, "action is a Video; tensors, images and texts are read"),
    ],
)
def test_features_that_are_not_read_are_named(folder, feature, message):
    edited(folder / "features.json", lambda content: steps_of(content).update(action=feature))
    with pytest.raises(InvalidInput, match=message):
        parse(folder, lambda line: None)


def test_missing_files_splits_and_versions_are_named(folder):
    with pytest.raises(InvalidInput, match="has the splits train, val; choose one of them, 'test' is none"):
        parse(folder, lambda line: None, "test")
    (folder / SHARD).rename(folder / "tiny-train.tfrecord-00001-of-00003")
    with pytest.raises(DataError, match="lacks 2 of the 3 files of the split train, the first with number 00000"):
        parse(folder, lambda line: None)
    shutil.copytree(folder, folder.parent / "2.0.0")
    with pytest.raises(InvalidInput, match=r"holds the versions 1\.0\.0, 2\.0\.0; give the folder of one"):
        parse(folder.parent, lambda line: None)
    (folder / "features.json").unlink()
    with pytest.raises(DataError, match=r"has no features\.json beside its TFRecord files"):
        parse(folder, lambda line: None)


def test_message_of_another_type(folder):
    (folder / SHARD).write_bytes(record(b"\xff\xff\xff") * 2)
    with pytest.raises(DataError, match="episode 0 is no tf.train.Example"):
        parse(folder, lambda line: None)


def test_images_that_are_none(folder):
    content = (folder / SHARD).read_bytes()
    first, second = tfrecord.records(folder / SHARD)
    broken = first.replace(b"\x89PNG\r\n\x1a\n", b"\x89PNX\r\n\x1a\n", 1)
    assert len(content) == len(record(first) + record(second))
    (folder / SHARD).write_bytes(record(broken) + record(second))
    with pytest.raises(DataError, match="episode 0: observation/image hold no image at step 0.*PNG or JPEG"):
        parse(folder, lambda line: None)


def rewarded(folder):
    """The recorded folder with the rewards of its last steps, and the rewards of each episode."""
    with np.load(RECORDED / "expected.npz") as expected:
        rewards = [expected[f"train/{number}/reward"].astype("<f4") for number in range(2)]
    content = list(tfrecord.records(folder / SHARD))
    changed = [np.append(one[:-1], np.float32(number + 1.5)) for number, one in enumerate(rewards)]
    for number in range(2):
        assert content[number].count(rewards[number].tobytes()) == 1
        content[number] = content[number].replace(rewards[number].tobytes(), changed[number].tobytes())
    (folder / SHARD).write_bytes(b"".join(map(record, content)))
    return changed


def test_rewards_of_the_last_steps_are_said_or_kept(folder):
    rewards, said = rewarded(folder), []
    for episode, expected in zip(parse(folder, said.append).episodes, rewards, strict=True):
        np.testing.assert_array_equal(episode.rewards, expected[:-1])
    (line,) = [line for line in said if line.startswith("warning")]
    assert "left out the rewards of the last steps, which are not 0 in 2 of 2 episodes, 4 in all" in line
    assert "--last-steps" in line
    said.clear()
    with np.load(RECORDED / "expected.npz") as values:
        for number, episode in enumerate(parse(folder, said.append, last_steps=True).episodes):
            np.testing.assert_array_equal(episode.rewards, rewards[number])
            np.testing.assert_array_equal(episode.actions, values[f"train/{number}/action"])
            assert len(episode.observations["state"]) == len(rewards[number])
            assert episode.terminated == values[f"train/{number}/is_terminal"][-1]
    assert not any(line.startswith("warning") for line in said)
