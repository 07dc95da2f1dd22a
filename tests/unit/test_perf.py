"""What gadget.yaml says about samples."""

import re

import pytest

from igrun.attach import perf
from igrun.errors import MetadataError
from igrun.host import HOST_TARGET
from igrun.objects import Hook

OPTIONS = {
    "perf.type": "software",
    "perf.config": "count_sw_cpu_clock",
    "perf.sampleType": "sample_raw",
    "sampler.frequency": "99",
}


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"perf.type": "tracepoint"}, "unsupported perf.type 'tracepoint'", "software, hardware, hw_cache, raw"),
        ({"perf.config": "count_sw_cpu_clok"}, "unsupported perf.config 'count_sw_cpu_clok'", "count_sw_cpu_clock"),
        ({"perf.type": "hardware"}, "unsupported perf.config 'count_sw_cpu_clock'", "count_hw_"),
        ({"perf.type": "raw"}, "'count_sw_cpu_clock' is no number", ""),
        ({"perf.sampleType": "raw"}, "unsupported perf.sampleType 'raw'", "use sample_raw"),
        ({"sampler.frequency": "0"}, "sampler.frequency is zero for program 'sample'", ""),
        ({"sampler.frequency": "-1"}, "sampler.frequency is no number for program 'sample'", ""),
        ({"sampler.frequency": ""}, "sampler.frequency not specified for program 'sample'", ""),
        ({"sampler.frequency": "9223372036854775808"}, "sampler.frequency is too large for program 'sample'", ""),
        ({"sampler.frequency": "", "sampler.period": "0"}, "sampler.period is zero for program 'sample'", ""),
        ({"sampler.period": "1"}, "there is sampler.frequency as well", "leave out one"),
        ({"perf.pid": "me"}, "'me' is no number", ""),
    ],
)
def test_an_option_that_is_wrong_is_told(changed, message, hint):
    hook = Hook("count", "perf_event/sample", "sample", {**OPTIONS, **changed})

    with pytest.raises(MetadataError, match=re.escape(message)) as error:
        perf.places(hook, HOST_TARGET)
    assert hint in error.value.hint


def test_a_program_without_a_name_in_its_section_has_its_options_under_its_own():
    with pytest.raises(MetadataError) as error:
        perf.places(Hook("count", "perf_event", ""), HOST_TARGET)

    assert error.value.path == "programs.count.perf.type"


def test_every_number_is_the_kernels():
    assert perf.SOFTWARE["count_sw_cgroup_switches"] == 11
    assert perf.HARDWARE["count_hw_ref_cpu_cycles"] == 9
    assert perf.CACHES["count_hw_cache_node_prefetch_miss"] == 6 | 2 << 8 | 1 << 16
