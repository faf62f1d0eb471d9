"""Small DICOM slides of several files, as scanners write them: one file for each level."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid


def write_dicom(folder: Path, *levels: NDArray[np.uint8], mpp: float, tile: int = 64) -> Path:
    """Write each level as ``NUMBER.dcm``; return the folder."""
    folder.mkdir(parents=True)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    same = {name: generate_uid() for name in names}
    for number, pixels in enumerate(levels):
        scale = levels[0].shape[1] / pixels.shape[1]
        level = _level(pixels, mm=mpp * scale / 1000, tile=tile)
        kinds = ["DERIVED", "RESAMPLED"] if number else ["ORIGINAL", "NONE"]
        level.ImageType = [kinds[0], "PRIMARY", "VOLUME", kinds[1]]
        level.InstanceNumber = number + 1
        for name, uid in same.items():
            setattr(level, name, uid)
        dcmwrite(folder / f"{number}.dcm", level, enforce_file_format=True)
    return folder


def _level(pixels: NDArray[np.uint8], *, mm: float, tile: int) -> Dataset:
    """Return a level as a DICOM data set with JPEG tiles; a px is ``mm`` wide."""
    height, width = pixels.shape[:2]
    level = Dataset()
    level.file_meta = FileMetaDataset()
    level.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    level.SOPClassUID, level.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
    level.Modality, level.DimensionOrganizationType = "SM", "TILED_FULL"
    level.Rows = level.Columns = tile
    level.TotalPixelMatrixColumns, level.TotalPixelMatrixRows = width, height
    level.SamplesPerPixel, level.PhotometricInterpretation = 3, "YBR_FULL_422"
    level.BitsAllocated, level.BitsStored, level.HighBit = 8, 8, 7
    level.PlanarConfiguration = level.PixelRepresentation = 0
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [mm, mm]
    shared.PixelMeasuresSequence = [measures]
    level.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            frame = np.full((tile, tile, 3), 255, np.uint8)
            part = pixels[y : y + tile, x : x + tile]
            frame[: part.shape[0], : part.shape[1]] = part
            jpeg = io.BytesIO()
            Image.fromarray(frame).save(jpeg, "JPEG", quality=95, subsampling=0)
            frames.append(jpeg.getvalue())
    level.NumberOfFrames = len(frames)
    level.PixelData = encapsulate(frames)
    return level
