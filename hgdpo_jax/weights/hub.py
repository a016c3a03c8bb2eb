"""Fetching files of a repository of the Hugging Face hub into its cache."""

from collections.abc import Callable, Iterable, Sequence

from etils import epath

from hgdpo_jax.errors import UserError


def fetch(
    name: str,
    revision: str | None,
    wanted: Callable[[Sequence[str]], Iterable[str]],
    cached: Sequence[str],
    kind: str = "model",
) -> epath.Path:
    """The folder, in the hub's cache, of the repository `name` ("owner/name"), with the files that `wanted` chooses.

    `wanted` gets the names of all its files. Without a network the cached folder is returned that has files of the
    names or patterns `cached`. `kind` is "model" or "dataset". Raises UserError where there is no such repository or
    revision, it may not be read, or the hub does not answer and nothing is cached.
    """
    # Imported here: whoever loads a folder need not wait for it.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # Not list_repo_files: without a network that tries again for half a minute.
        describe = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        files = list(wanted([file.rfilename for file in describe(name, revision=revision).siblings or ()]))
        return epath.Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=files))
    except GatedRepoError as error:
        raise UserError(
            f"{name} is only for those who accepted its terms: accept them on https://huggingface.co/{name}, then type "
            "`hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision}: give a branch, tag or commit of it") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name} is neither an existing folder or file nor a repository of the hub that you may read: check the "
            "spelling, or, for a private one, type `hf auth login`"
        ) from error
    except (HTTPError, OSError) as error:
        try:
            # Not all its files were fetched, and the library refuses a folder that lacks any of those asked for.
            return epath.Path(
                snapshot_download(
                    name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=list(cached)
                )
            )
        except OSError:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{name} is neither an existing folder or file nor in the hub's cache, and the hub does not answer "
                f"({reason}): check the spelling, or run again with a network"
            ) from error
