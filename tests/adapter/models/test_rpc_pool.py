"""One model on several RPC servers, each a process of its own, over loopback."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from shutil import copyfile

import pytest
from fake_resident import wait_until

import pyllama
from adapter import ModelPool
from adapter.errors import ConfigurationError, InvalidParameterError, LlamaCppError, ResourceError
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.models.hardware import HardwareManager

PROMPT = (1, 70, 80, 90)


def request(max_tokens=16):
    return GenerationRequest(PROMPT, max_tokens, Sampling(temperature=0.0), 0)


def generate(pool, name="six", **changes):
    return pool.load_model(name).generators["batched"].generate(request(**changes)).token_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_tiny_model):
    made = tmp_path_factory.mktemp("models")
    for name in ("six", "other"):
        copyfile(write_tiny_model(n_layer=6), made / f"{name}.gguf")
    return made


@pytest.mark.parametrize(
    "wrong",
    [
        "127.0.0.1:50052",
        [1],
        ["nohost"],
        ["host:"],
        [":1"],
        ["host:0"],
        ["host:65536"],
        ["ho\0st:1"],
    ],
)
def test_a_wrong_list_of_servers_is_refused(folder, wrong):
    with pytest.raises(InvalidParameterError, match="rpc"):
        ModelPool(folder, rpc=wrong)


def test_servers_and_hardware_exclude_each_other(folder):
    with pytest.raises(ConfigurationError, match="not both"):
        ModelPool(folder, rpc=["127.0.0.1:1"], hardware=HardwareManager())


if pyllama.supports_rpc():

    @pytest.fixture
    def servers():
        made = [pyllama.RpcServer(port=0, n_threads=1) for _ in range(3)]
        yield made
        for server in made:
            server.close()

    def pool_of(folder, servers, **options):
        endpoints = [server.endpoint for server in servers]
        return ModelPool(folder, rpc=endpoints, n_gpu_layers=-1, context_length=512, **options)

    def kill(server):
        process = server._open().pointer
        process.kill()
        process.wait()

    def test_padded_batches_on_a_device_keep_the_bytes(folder, servers):
        """As on a GPU: attention reads a fixed number of cells, and one request runs at a time too.

        Without a width, requests on a device share one memory.
        """
        asked = [
            replace(request(8 + seed), prompt=(*PROMPT, *range(10, 10 + 30 * seed)), seed=seed,
                    sampling=Sampling(temperature=1.0), logprobs=1)
            for seed in range(6)
        ]  # fmt: skip
        options = {"max_contexts": 4, "batch_width": 4}
        with pool_of(folder, servers[:1], **options) as pool:
            loaded = pool.load_model("six")
            batched, isolated = (loaded.generators[each] for each in ("batched", "isolated"))
            expected = [batched.generate(each).logprobs for each in asked]
            with ThreadPoolExecutor(6) as threads:
                found = [each.logprobs for each in threads.map(batched.generate, asked)]
            assert found == expected
            assert [isolated.generate(each).logprobs for each in asked[:2]] == expected[:2]
            assert "width=4" in loaded.computation
        with pool_of(folder, servers[:1]) as pool:
            assert "reproducible=False" in pool.load_model("six").computation

    def test_a_model_on_three_servers_gives_the_same_tokens(folder, servers):
        with ModelPool(folder, context_length=512) as local:
            expected = generate(local)
        with pool_of(folder, servers) as pool:
            assert generate(pool) == expected
            placement = pool.load_model("six").placement
            assert [device.description for device in placement.devices] == [
                server.endpoint for server in servers
            ]
            for device in placement.devices:
                assert placement.memory[device.name] > 0

    def test_a_server_that_dies_is_an_exception_and_the_pool_recovers(folder, servers):
        with ModelPool(folder, context_length=512) as local:
            expected = generate(local)
        with pool_of(folder, servers) as pool:
            stream = pool.load_model("six").generators["batched"].stream(request(400))
            next(stream)
            kill(servers[1])
            with pytest.raises(ResourceError, match="was lost"):
                list(stream)
            with pytest.raises(LlamaCppError):
                generate(pool)
            port = int(servers[1].endpoint.split(":")[1])
            with pyllama.RpcServer(port=port, n_threads=1):
                assert generate(pool) == expected

    def test_a_server_that_is_not_there_is_an_error(folder):
        with (
            ModelPool(folder, rpc=["127.0.0.1:1"]) as pool,
            pytest.raises(ResourceError, match=r"no RPC server at 127\.0\.0\.1:1"),
        ):
            pool.load_model("six")

    def test_a_server_that_died_is_lost_and_not_full(folder, servers):
        """Its memory would read as 0 bytes, which must neither be believed nor kept."""
        with pool_of(folder, servers[:1]) as pool:
            pool.load_model("six")
            kill(servers[0])
            with pytest.raises(ResourceError, match=r"was lost|no RPC server"):
                pool.load_model("other")
            port = int(servers[0].endpoint.split(":")[1])
            with pyllama.RpcServer(port=port, n_threads=1):
                assert generate(pool, "other")
                assert generate(pool, "six")

    def test_an_evicted_model_is_planned_anew_when_its_server_was_lost_meanwhile(folder, servers):
        with pool_of(folder, servers[:1], max_models=1) as pool:
            assert generate(pool, "six")
            with pool.load_model("other").lease():  # evicts it
                kill(servers[0])
                with pytest.raises(LlamaCppError):
                    generate(pool, "other")
                port = int(servers[0].endpoint.split(":")[1])
                again = pyllama.RpcServer(port=port, n_threads=1)
                assert generate(pool, "other")
            with again:
                slot = pool._loader.slot(folder / "other.gguf")
                assert wait_until(lambda: len(slot.residencies) == 1)
                pool.unload_model("other")
                pyllama.rpc_devices(again.endpoint)  # the way to the lost one is closed
                assert generate(pool, "six")

    def test_a_lost_server_is_had_again_while_its_model_is_leased(folder, servers):
        with ModelPool(folder, context_length=512) as local:
            expected = generate(local)
        with pool_of(folder, servers) as pool:
            loaded = pool.load_model("six")
            slot = pool._loader.slot(loaded.path)
            with loaded.lease() as model:
                kill(servers[1])
                with pytest.raises(LlamaCppError):
                    generate(pool)
                port = int(servers[1].endpoint.split(":")[1])
                with pyllama.RpcServer(port=port, n_threads=1):
                    for _ in range(2):
                        assert generate(pool) == expected
                    assert model.lost
                    assert not model.closed
                    assert len(slot.residencies) == 2
                    assert pool.load_model("six") is loaded
            # The second server has ended by now, too.
            assert wait_until(lambda: model.closed and len(slot.residencies) <= 1)

    def test_a_handle_whose_server_was_lost_works_again(folder, servers):
        with pool_of(folder, servers) as pool:
            loaded = pool.load_model("six")
            kill(servers[0])
            generator = loaded.generators["batched"]
            with pytest.raises(LlamaCppError):
                generator.generate(request())
            with pytest.raises(ResourceError, match="no RPC server"):
                generator.generate(request())
            port = int(servers[0].endpoint.split(":")[1])
            with pyllama.RpcServer(port=port, n_threads=1):
                assert generator.generate(request()).token_ids
                assert loaded.context_length == 512
