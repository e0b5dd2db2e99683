"""What the page says of the comparison, of methods and of sets, beside what was measured."""

from collections.abc import Mapping

ABOUT = """\
# Rivals on the same images

CRAD beside other detectors **on the same images**: they are decoded once, and masks, protocols,
metrics and machine are the same too. Methods that take features get those of one frozen backbone,
computed once; the others get the images and, where they use a pretrained network, the same one. A
number then differs by the method alone. Numbers of other images, backbones or protocols, such as
those of papers, do not compare with these.

* *Unified*: one model for all classes of a set, which is not told the class of a test image.
  *Separate*: one for each; a set of one class is measured once.
* `crad train` holds a share of the normal images back for its thresholds; all methods train on the
  same rest. A seed sets which images that are and all that is random in a method. Numbers are means
  over seeds, ± the standard deviation (n - 1), in percent; those of a set with several classes are
  means over classes. Without ±, there is one seed.
* *By protocol NAME* (see [the protocols](detector.md)): the maps of a method are smoothed and
  scored by that protocol. Those of methods on images come smoothed, as their papers do it, and so
  are smoothed twice; *own* is by the method's own smoothing and image score alone.
* "(5 min)": each model was trained for as many epochs as take that time, by its pace in the first
  steps, and for no more than were published. A method that ran few of its epochs shows what it does
  in that time on a CPU, not what it can do. Methods without it are fitted in one pass, or were
  trained for as long as `crad train` does.
* Times are means over seeds: of the processor, where one thread computed and *fit* says CPU, else
  of the wall, where other work counts too. *Fit* is without the backbone for methods on features,
  and with it for those on images. *First result* is from decoded images to the first map: the
  features of the training images, the fit, and one image. *Images/s* are from decoded pixels to
  maps, with the backbone, one or 32 images at once. *Size* is what must be stored beside the
  backbone. *Memory* is what fitting and mapping take at most on top of the images and features. In
  the separate setting, fit, size and memory are those of all models.
* The statistics of the scattering backbone are of all normal images of a set, also in the separate
  setting.
* `python -m benchmarks.detectors.altered` writes harder copies of a set, with few training images,
  defective ones among them, other light or compression; the same command measures these."""

GROWTH = """\
One class with more and more images, and 200 images of each of more and more classes, in one
model. Images are those of the set, whose features are taken again with noise. *Look-up* is the
time from the features of an image to its map, 32 at once; *memory* is what fitting and mapping
take at most on top of the features. CRAD was trained for half a minute each time, or for one
epoch where that takes longer; `crad train` chooses how long by the number of images: the same up to
1,000, then in proportion to the root."""

WHY: Mapping[str, str] = {
    "magnetic_tile": (
        "Longer training does not help on the magnetic tiles: image AUROC was 0.833 after 800 "
        "steps, and 0.807 after 1,600 with other images held back ([what was "
        "tried](refinement.md#longer-training)). Why the others are ahead was not found out."
    ),
}
"""Why CRAD loses on a set, as far as is known."""

METHODS: Mapping[str, str] = {
    "crad": "trained as `crad train` does, with its defaults for the backbone",
    "crad_without_refinement": "the same without its refinement",
    "nearest_neighbour": (
        "ours, from Roth et al., CVPR 2022, on the features of CRAD: averaged over 3 x 3 "
        "neighbourhoods, a greedy k-center coreset of 1 %, chosen in 128 random projections, and "
        "the distance from the nearest entry. The paper averages each layer before layers are put "
        "together"
    ),
    "padim": (
        "ours, from Defard et al., ICPR 2021 workshops, on the features of CRAD: a Gaussian for "
        "each position, of 100 random channels (all, if there are fewer), with 0.01 added to the "
        "variances, and the Mahalanobis distance"
    ),
    "uniad": (
        "ours, from You et al., NeurIPS 2022, on the features of CRAD, brought to stride 16: 4 + 4 "
        "layers with neighbour-masked attention (7 x 7) and a query for each layer of the decoder, "
        "feature jitter of 20, 1,000 epochs, batch 64. The paper has features of strides 2 to 16"
    ),
    "hvq_trans": (
        "ours, from Lu et al., NeurIPS 2023, on the features of CRAD, as the transformer of UniAD "
        "(ours) with a quantiser behind each layer of the encoder, for each class, fed by the "
        "quantiser before it; the decoder sees prototypes only, and the distance of a feature is "
        "weighted by the cost of optimal transport to them. The settings of UniAD, with 1,000 "
        "epochs, 512 prototypes, the commitment of 0.25, and the transport (cosine cost, equal "
        "masses, 10 iterations of Sinkhorn with 0.1, weight 1 in the loss) are our choice, not "
        "checked against the paper. The paper trains a network to tell the class of a test image; "
        "here the nearest class mean does"
    ),
    "reverse_distillation": (
        "ours, from Deng and Li, CVPR 2022: 200 epochs, batch 16, Adam with 0.005, the stages of "
        "the backbone at strides 4, 8 and 16. That of anomalib is tied to ResNets, whose blocks it "
        "has for a decoder; this one has a residual block for each stage"
    ),
    "mkd": (
        "ours, from Salehi et al., CVPR 2021: a student learns values and directions of a frozen "
        "teacher's maps, which weigh the same before training; the map is the gradient of the loss "
        "by the pixels, smoothed and opened, the score the loss. The paper distils VGG-16, whose "
        "weights have to be downloaded; here the teacher is the backbone at strides 4, 8 and 16, "
        "and the student has a residual block for each stage. 200 epochs of Adam with 0.001, batch "
        "64, the filter of 4 pixels and the opening by 3 x 3 are our choice, not checked "
        "against the paper"
    ),
    "anomalib_patchcore": (
        "by anomalib: strides 8 and 16, a coreset of 1 %, 9 neighbours for the score of an image"
    ),
    "anomalib_padim": "by anomalib: strides 4, 8 and 16, 100 channels",
    "anomalib_dfm": (
        'by anomalib: Ahuja et al., "Probabilistic Modeling of Deep Features for '
        'Out-of-Distribution and Adversarial Detection", 2019; what the principal components with '
        "97 % of the variance leave of the features of an image at stride 16"
    ),
    "anomalib_stfpm": (
        "by anomalib: Wang et al., BMVC 2021, the student-teacher method after US; 100 epochs, "
        "batch 32, SGD with 0.4; the student is the backbone without its weights"
    ),
    "anomalib_supersimplenet": "by anomalib: Rolih et al., ICPR 2024; 300 epochs, batch 32",
}
"""How methods are made, by name."""

LEFT_OUT: Mapping[str, str] = {
    "UniAD, HVQ-Trans, MKD (ours) and SuperSimpleNet (anomalib), where no table has them": (
        "`--methods uniad hvq_trans mkd anomalib_supersimplenet` trains them, for 1,000, 1,000, "
        "200 and 300 epochs; of UniAD and HVQ-Trans, one epoch of boards_and_rails takes a core "
        "six minutes, and what they reach by then (image AUROC of 0.56 and 0.55) says nothing of "
        "them"
    ),
    "DRAEM": (
        "trains two networks from scratch at the resolution of the images for 700 epochs, with the "
        "texture images of DTD, which have to be downloaded"
    ),
    "Dinomaly, INP-Former, AnomalyDINO": (
        "need a pretrained DINO transformer, whose weights have to be downloaded"
    ),
    "EfficientAD": "needs its own pretrained teacher and ImageNet images, both downloads",
    "FastFlow, UniNet, CFA": (
        "their code in anomalib only takes networks whose weights have to be downloaded"
    ),
    "OmniAL": (
        "nothing can be installed; as DRAEM, it trains networks from scratch at the resolution of "
        "the images"
    ),
}
"""Why rivals are not measured."""

ORIGINS: Mapping[str, str] = {
    "demo": "Generated by crad: photographs of textures and rendered products with defects.",
    "demo-hard": "As `demo`, with the defects at a quarter of their contrast.",
    "magnetic_tile": (
        "Photographs of magnetic tiles from "
        "[Magnetic-tile-defect-datasets](https://github.com/abin24/Magnetic-tile-defect-datasets.) "
        '(Huang et al., "Surface defect saliency of magnetic tile", 2018), in the layout of MVTec '
        "AD; training and test images never show the same tile."
    ),
    "boards_and_rails": (
        "Class `pcb`: tiles of binary pictures of circuit boards from "
        "[DeepPCB](https://github.com/tangsanli5201/DeepPCB), some defects of which were added by "
        "hand. Class `rail_express`: photographs of railheads from the RSDDs data set, as kept in "
        "[surface_defect_detection_datasets]"
        "(https://github.com/Woody-Tang/surface_defect_detection_datasets). Both in the layout of "
        "MVTec AD."
    ),
}
"""Where the images of a set are from, by its name."""


NO_ORIGIN = "A folder of that name."
"""Of a set that is not known here."""


def origin(data: str) -> str:
    """Where the images of a set are from; of an altered copy, of which set it is one."""
    whole = [name for name in ORIGINS if data.startswith(f"{name}-")]
    if data not in ORIGINS and whole:
        name = max(whole, key=len)
        return f"A copy of `{name}` by `benchmarks.detectors.altered`, named after the changes."
    return ORIGINS.get(data, NO_ORIGIN)
