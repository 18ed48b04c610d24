import os
import time

import numpy as np
import pytest
import ray

from search_spaces.errors import DataError, SetupError
from tasks.measures.measure import measure_nested
from tasks.remote import InlineExecutor, RayExecutor


def double(shared, number):
    return shared.sum() * number


def fail_for_three(number):
    if number == 3:
        raise DataError("The number is 3", hint="Choose another")
    return number


def write_to_full_disk():
    with open("/dev/full", "w") as file:
        file.write("text")


def sleep_for(seconds):
    time.sleep(seconds)
    return seconds


def there_is(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def kill_worker(path):
    with open(path, "a") as file:
        file.write("x")
    os._exit(1)


def count_threads():
    from threadpoolctl import threadpool_info

    np.ones((4, 4)) @ np.ones((4, 4))
    return max(
        [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"], default=1
    )


@pytest.fixture(scope="module")
def ray_cluster(request):
    """The session's cluster where tests/conftest.py provides one, else our own."""
    try:
        yield request.getfixturevalue("ray_local")
    except pytest.FixtureLookupError:
        ray = pytest.importorskip("ray")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield None
        ray.shutdown()


class ExecutorContract:
    def test_yields_every_result_with_its_index(self, executor):
        shared = executor.share(np.ones(5))
        results = dict(executor.map_unordered(double, [(shared, i) for i in range(7)]))
        assert results == {i: 5 * i for i in range(7)}

    def test_no_work_yields_nothing(self, executor):
        assert list(executor.map_unordered(double, [])) == []

    def test_a_users_mistake_arrives_as_itself(self, executor):
        with pytest.raises(DataError, match=r"^The number is 3\. Choose another\.$") as caught:
            list(executor.map_unordered(fail_for_three, [(i,) for i in range(5)]))
        assert type(caught.value) is DataError

    def test_a_full_disk_in_a_task_arrives_as_itself(self, executor):
        with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$") as caught:
            list(executor.map_unordered(write_to_full_disk, [()]))
        assert caught.value.strerror == "No space left on device"

    def test_measures_do_not_depend_on_the_executor(self, executor):
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (120, 1, 6, 6), dtype=np.uint8), np.arange(120) % 2
        local_record = measure_nested(images, labels, [60, 120])
        remote_record = measure_nested(images, labels, [60, 120], executor=executor)
        for local, remote in zip(local_record.sizes, remote_record.sizes, strict=True):
            assert remote.d_data["mle"].value == pytest.approx(local.d_data["mle"].value, rel=1e-6)
            assert remote.label_sharpness == local.label_sharpness


class TestInlineExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self):
        return InlineExecutor()


@pytest.mark.ray
class TestRayExecutor(ExecutorContract):
    def test_spread_calls_use_the_spread_strategy_and_return_the_same_results(
        self, executor, monkeypatch
    ):
        import ray

        strategies = []
        original_options = ray.remote_function.RemoteFunction.options

        def recorded_options(self, **options):
            strategies.append(options.get("scheduling_strategy"))
            return original_options(self, **options)

        monkeypatch.setattr(ray.remote_function.RemoteFunction, "options", recorded_options)
        for spread in (True, False):
            results = dict(
                executor.map_unordered(
                    double, [(np.array([i]), 2) for i in range(4)], spread=spread
                )
            )
            assert results == {i: 2 * i for i in range(4)}
        assert strategies == 4 * ["SPREAD"] + 4 * [None]

    @pytest.fixture
    def executor(self, ray_cluster):
        return RayExecutor()

    def test_arrives_in_order_of_completion(self, executor, tmp_path):
        awaited_file = tmp_path / "awaited"
        results = executor.map_unordered(there_is, [(str(awaited_file),), ("/",), ("/",)])
        assert [next(results)[0] for _ in range(2)] == [1, 2]
        awaited_file.touch()
        assert [index for index, _ in results] == [0]

    def test_arguments_are_requested_only_as_workers_become_free(self, executor):
        requested_indices = []

        def arguments_on_demand():
            for index in range(6):
                requested_indices.append(index)
                yield (0.0,)

        results = executor.map_unordered(sleep_for, arguments_on_demand())
        next(results)
        assert len(requested_indices) <= 3
        results.close()

    @pytest.mark.parametrize(
        ("seconds", "soon", "num_cancelled"), [(0.1, 400.0, 0), (30.0, 0.1, 1)]
    )
    def test_a_task_that_ends_soon_is_not_cancelled(
        self, executor, monkeypatch, seconds, soon, num_cancelled
    ):
        """A task that was canceled while it ended took this process down, in one of some hundred
        stops."""
        cancelled, cancel = [], ray.cancel
        monkeypatch.setattr("tasks.remote.CANCEL_AFTER_S", soon)
        monkeypatch.setattr(
            ray, "cancel", lambda call, **options: (cancelled.append(call), cancel(call, **options))
        )
        list(executor.map_unordered(sleep_for, [(0.0,), (0.0,)]))  # start both workers first
        results = executor.map_unordered(sleep_for, [(0.0,), (seconds,)])
        next(results)
        results.close()
        assert len(cancelled) == num_cancelled

    def test_a_task_that_kills_its_worker_ends(self, executor, tmp_path):
        path = tmp_path / "attempts"
        with pytest.raises(
            SetupError,
            match="The worker of the task 'kill_worker' died 4 times",
        ):
            list(executor.map_unordered(kill_worker, [(str(path),)]))
        assert path.read_text() == "xxxx"

    def test_holds_blas_to_the_cpu_of_the_task(self, executor):
        assert [n for _, n in executor.map_unordered(count_threads, [()])] == [1]

    def test_takes_as_many_workers_as_the_cluster_has(self, ray_cluster):
        assert RayExecutor().num_workers >= 2


class TestWaiting:
    """Tasks wait for CPUs that another user's actor occupies, as on a shared cluster."""

    @pytest.fixture
    def cpu_holder(self, ray_cluster):
        import ray

        class Holder:
            def there(self):
                return True

        holder = ray.remote(Holder).options(num_cpus=2).remote()
        ray.get(holder.there.remote())
        yield holder
        ray.kill(holder, no_restart=True)

    @pytest.mark.parametrize(
        ("options", "place"),
        [({}, "the cluster"), ({"driver_node_only": True}, "the driver's node")],
    )
    def test_waiting_for_occupied_cpus_is_reported_once_and_ends_when_they_are_free(
        self, cpu_holder, monkeypatch, options, place
    ):
        import ray

        messages = []

        def note(message):
            messages.append(message)
            ray.kill(cpu_holder, no_restart=True)

        monkeypatch.setattr("tasks.remote.NOTE_AFTER_S", 1.0)
        executor = RayExecutor(note=note, **options).with_label("prepare mnist")
        assert sorted(executor.map_unordered(sleep_for, [(0,), (0,)])) == [(0, 0), (1, 0)]
        assert messages == [
            "prepare mnist sleep for: no task has finished for 1 s. Each task needs 1 CPU of "
            f"{place}. If other work uses all CPUs, the tasks start as soon as a CPU is free."
        ]

    def test_a_long_task_is_not_reported_as_waiting(self, ray_cluster, monkeypatch):
        import ray

        while ray.available_resources().get("CPU") != 2:  # earlier tasks use CPUs
            time.sleep(0.1)
        messages = []
        monkeypatch.setattr("tasks.remote.NOTE_AFTER_S", 0.1)
        assert list(RayExecutor(note=messages.append).map_unordered(sleep_for, [(1,)])) == [(0, 1)]
        assert messages == []
