"""Tumbling windows of a chunk of tokens, against a loop that counts along each row."""

import pytest
import torch

from aaren_rl.mixers.base.tumbling_window import live_windows, tumbling_windows, visible_windows


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("time", [1, 4, 23])
@pytest.mark.parametrize("padded", [False, True])
def test_windows_are_counted_from_the_start_of_each_episode(size, time, padded):
    rows, past = 40, 3
    generator = torch.Generator().manual_seed(100 * size + time)
    episode = (torch.rand(rows, time, generator=generator) < 0.12).long().cumsum(1)
    filled = torch.randint(0, size, (rows,), generator=generator)
    live = torch.arange(past) >= torch.randint(0, past + 1, (rows, 1), generator=generator)
    count = torch.full((rows,), time)
    if padded:
        count = torch.randint(0, time + 1, (rows,), generator=generator)
        # What follows the real tokens belongs to the episode of the last of them.
        last = torch.where(count > 0, episode.gather(1, (count - 1).clamp(min=0).unsqueeze(1)).squeeze(1), 0)
        episode = torch.minimum(episode, last.unsqueeze(1))
    tokens = torch.arange(rows * time).view(rows, time, 1)
    recent = -1 - torch.arange(rows * (size - 1)).view(rows, size - 1, 1)
    windows = tumbling_windows(recent, filled, tokens, episode, count if padded else None, size)
    looks, alive = visible_windows(windows, live, episode), live_windows(windows, live, episode)
    for row in range(rows):
        # Windows are lists of numbers; those before the chunk are only known by their position.
        known = [place if live[row, place] else None for place in range(past)]
        own = recent[row, size - 1 - filled[row] :, 0].tolist()
        finished = []
        for t in range(count[row]):
            if episode[row, t] > (episode[row, t - 1] if t else 0):
                own, known = [], [None] * past
            if len(own) == size:
                own = []
            own.append(tokens[row, t, 0].item())
            assert windows.position[row, t] == len(own) - 1
            assert windows.entries[row, windows.in_window[row, t], 0].tolist() == own
            assert windows.completed_before[row, t] == len(finished)
            assert looks[row, t].nonzero().flatten().tolist() == [place for place in known[-past:] if place is not None]
            if len(own) == size:
                assert windows.completed[row, len(finished), :, 0].tolist() == own
                assert windows.episode[row, len(finished)] == episode[row, t]
                known.append(past + len(finished))
                finished.append(own)
        assert windows.completed_count[row] == len(finished)
        assert alive[row].tolist() == [place is not None for place in known[-past:]]
        filled_now = len(own) % size
        assert windows.filled[row] == filled_now
        assert windows.recent[row, size - 1 - filled_now :, 0].tolist() == own[:filled_now]
